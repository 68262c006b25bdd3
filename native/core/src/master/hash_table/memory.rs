//! The memory of the buckets: one mapping whose pages cost nothing until they are used. Models get
//! plain objects, since loom's atomics are more than their bytes.

use super::Bucket;
use crate::status::Status;

#[cfg(not(loom))]
pub(super) use mapped::Buckets;
#[cfg(loom)]
pub(super) use modelled::Buckets;

#[cfg(not(loom))]
mod mapped {
    use super::{Bucket, Status};
    use crate::mapping::Mapping;

    /// A fixed number of buckets, all slots 0 at first.
    pub struct Buckets {
        memory: Mapping,
        count: usize,
    }

    impl Buckets {
        pub fn reserve(count: usize) -> Result<Self, Status> {
            let bytes = count.checked_mul(size_of::<Bucket>());
            let memory = Mapping::reserve(bytes.ok_or(Status::OutOfMemory)?)?;
            Ok(Self { memory, count })
        }

        #[inline(always)]
        pub fn get(&self, index: usize) -> &Bucket {
            debug_assert!(index < self.count, "an index of this table");
            // SAFETY: indices are below `buckets` or come from `overflow`, both within `count`; the
            // memory is zeroed, aligned to 64 and only accessed as atomics.
            unsafe { &*self.memory.base().cast::<Bucket>().add(index) }
        }

        pub fn populate(&self, offset: usize, bytes: usize) {
            self.memory.populate(offset, bytes);
        }

        pub fn release_pages(&self) {
            self.memory.release_pages();
        }
    }
}

#[cfg(loom)]
mod modelled {
    use super::{Bucket, Status};
    use crate::sync::atomic::AtomicU64;

    /// A fixed number of buckets, all slots 0 at first.
    pub struct Buckets(Box<[Bucket]>);

    impl Buckets {
        pub fn reserve(count: usize) -> Result<Self, Status> {
            let bucket = |_| std::array::from_fn(|_| AtomicU64::new(0));
            Ok(Self((0..count).map(bucket).collect()))
        }

        pub fn get(&self, index: usize) -> &Bucket {
            &self.0[index]
        }

        pub fn populate(&self, _offset: usize, _bytes: usize) {}

        pub fn release_pages(&self) {}
    }
}
