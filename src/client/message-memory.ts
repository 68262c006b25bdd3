/**
 * Memory for the bodies of messages that is used again: of requests as soon as they are answered,
 * for until then they may be on their way, and of replies as soon as all values are taken out of
 * them. Fresh memory for each would cost more than its allocation: V8 counts the bytes of buffers,
 * and begins a full collection for some 10 to 20 MB of them.
 *
 * Rule: what was never answered is not given back, since nobody knows when it has left; it is the
 * garbage collector's.
 */

/** Smaller ones come from Node's own pool. */
const BODY_BYTES_MIN = 4 * 1024;
/** Of what waits here to be used again. */
const FREE_BYTES_MAX = 16 * 1024 * 1024;

export class MessageMemory {
  /** By the binary logarithm of their size. */
  readonly #free: ArrayBuffer[][] = Array.from({ length: 32 }, () => []);
  #freeBytes = 0;

  get freeBytes(): number {
    return this.#freeBytes;
  }

  /** Not zeroed. */
  take(bytes: number): Buffer {
    if (bytes < BODY_BYTES_MIN) return Buffer.allocUnsafe(bytes);
    const size = sizeClassOf(bytes);
    const free = this.#free[size]?.pop();
    if (free === undefined) return Buffer.allocUnsafeSlow(2 ** size).subarray(0, bytes);
    this.#freeBytes -= free.byteLength;
    return Buffer.from(free, 0, bytes);
  }

  /** `body` was taken here, and nobody reads it any more. */
  giveBack(body: Buffer): void {
    const memory = body.buffer as ArrayBuffer;
    if (body.length < BODY_BYTES_MIN) return;
    if (this.#freeBytes + memory.byteLength > FREE_BYTES_MAX) return;
    this.#free[sizeClassOf(memory.byteLength)]?.push(memory);
    this.#freeBytes += memory.byteLength;
  }
}

/** Of the smallest power of two that is not below. */
function sizeClassOf(bytes: number): number {
  return 32 - Math.clz32(bytes - 1);
}
