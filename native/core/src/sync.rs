//! The primitives of the parts that threads share without a common lock: those of the system, or
//! under `--cfg loom` the ones through which loom tries all schedules (`native/loom`).
//!
//! Rule: the models run the code that ships; only these names differ. Modules that no model runs
//! use the system's primitives directly.

#[cfg(not(loom))]
mod of_the_system {
    pub(crate) use parking_lot::{Condvar, Mutex};
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread;
}

#[cfg(not(loom))]
pub(crate) use of_the_system::{Condvar, Mutex, atomic, thread};

#[cfg(loom)]
pub(crate) use of_loom::{Condvar, Mutex, atomic, thread};

/// loom's primitives with the signatures of parking_lot.
#[cfg(loom)]
mod of_loom {
    use std::ops::{Deref, DerefMut};

    pub(crate) use loom::sync::atomic;
    pub(crate) use loom::thread;

    /// A lock that is never poisoned.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    /// Holds the lock until it is dropped.
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(
                self.0.lock().expect("a model ends at its first panic"),
            ))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("held but while it waits")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held but while it waits")
        }
    }

    /// Wakes those who wait.
    #[derive(Debug, Default)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("held but while it waits");
            let held = self.0.wait(held).expect("a model ends at its first panic");
            guard.0 = Some(held);
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
