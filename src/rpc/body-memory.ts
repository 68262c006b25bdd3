/**
 * Memory for the bodies of messages that a link receives. Large ones belong to whoever asked, so
 * they cannot be used again; what has to be avoided is that each is fetched from the system.
 *
 * glibc's malloc gives pieces of 128 KiB and more back to the system as soon as they are free, and
 * once one was, takes twice its size for what is worth keeping at the end of its heap. The garbage
 * collector frees tens of them at once, so nearly all of it went back and each new MiB cost 256
 * page faults: gets of 1 MiB ran at 0.6 to 2 GB/s, by chance. Freeing one piece of the largest size
 * that it learns from makes it keep up to twice that. Nobody writes to that piece, so it costs
 * address space only; an allocator that does not learn is not harmed.
 */

/** From here on malloc asks the system, as it comes. */
const LARGE_BYTES = 128 * 1024;
/** glibc learns from pieces of at most 32 MiB, its own header included. */
const LESSON_BYTES = 32 * 1024 * 1024 - 64 * 1024;

let taught = false;

/** Not zeroed. */
export function bodyMemory(bytes: number): Buffer {
  if (bytes >= LARGE_BYTES && !taught) {
    taught = true;
    // Dropped here: the next collection frees it.
    Buffer.allocUnsafeSlow(LESSON_BYTES);
  }
  return Buffer.allocUnsafe(bytes);
}
