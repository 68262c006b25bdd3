/**
 * What a connection sends in one turn, side by side in memory that is used again once the kernel
 * has taken it. A message used to be a buffer of its own: V8 counts the bytes of buffers, and 40 MB
 * of them a second cost a master four full collections a second, each a pause of some 5 ms.
 *
 * Rule: bytes that the kernel has not taken stay as they are. As long as the socket holds some back
 * their memory is left to it, and the next bytes get new memory.
 */
import type { Socket } from 'node:net';
import { invariant } from './errors.js';

/** The most that `take` gives. */
const MEMORY_BYTES = 32 * 1024;

export type OutboxSocket = Pick<Socket, 'cork' | 'uncork' | 'write' | 'writableLength'>;

export class Outbox {
  readonly #socket: OutboxSocket;
  #memory = Buffer.alloc(0);
  /** Of the bytes that the socket has not got yet. */
  #start = 0;
  #end = 0;
  #corked = false;

  constructor(socket: OutboxSocket) {
    this.#socket = socket;
  }

  /** Bytes that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.writableLength + this.#end - this.#start;
  }

  /** What `take` gives a place in; another one after each call. */
  get memory(): Buffer {
    return this.#memory;
  }

  /** The place of the next `bytes`, to be written before anything else is called. */
  take(bytes: number): number {
    if (this.#memory.length - this.#end < bytes) {
      this.#write();
      if (this.#memory.length - this.#end < bytes) {
        invariant(bytes <= MEMORY_BYTES, 'what is longer leaves from where it lies');
        this.#memory = Buffer.allocUnsafeSlow(MEMORY_BYTES);
        this.#start = 0;
        this.#end = 0;
      }
    }
    const at = this.#end;
    this.#end += bytes;
    return at;
  }

  /** These leave from where they lie, behind all that was taken, and must not change until then. */
  append(part: Uint8Array): void {
    if (!this.#corked) this.#socket.cork();
    this.#corked = true;
    this.#write();
    this.#socket.write(part);
  }

  /** All of it leaves, in as few system calls as there can be. */
  flush(): void {
    this.#write();
    if (!this.#corked) return;
    this.#corked = false;
    this.#socket.uncork();
    this.#reuse();
  }

  #write(): void {
    if (this.#end === this.#start) return;
    this.#socket.write(this.#memory.subarray(this.#start, this.#end));
    this.#start = this.#end;
    this.#reuse();
  }

  #reuse(): void {
    if (this.#socket.writableLength > 0) return;
    this.#start = 0;
    this.#end = 0;
  }
}
