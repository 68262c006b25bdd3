/**
 * Checks what clients saw against what they were promised. Knows nothing of clusters, clocks or
 * faults: it is told each write before it is sent and after it is acknowledged, and each answer of
 * a read, and says what cannot be.
 *
 * Each key has one writer, which numbers its writes 1, 2, 3 … and sends a write only when the one
 * before has ended. Then, for a read between its start and its end:
 *   acknowledged or read before its start ≤ number read ≤ started at its end
 *   version read ≥ every version of this key that was acknowledged or read before its start
 * A deletion is a write without a value: no object is right if one of the possible numbers is a
 * deletion. A write whose outcome is unknown may count or not, until a later one is acknowledged.
 */
import { crc32c } from '../src/ops/checksum.js';
import { randomStream } from './dataset.js';

export const HEADER_BYTES = 16;

/** {u32 CRC-32C of the rest, u32 key index, u32 number, u32 length}, then bytes drawn from them. */
export function chaosValue(keyIndex: number, number: number, bytes: number): Buffer {
  const value = Buffer.alloc(Math.max(bytes, HEADER_BYTES));
  value.writeUInt32LE(keyIndex, 4);
  value.writeUInt32LE(number, 8);
  value.writeUInt32LE(value.length, 12);
  const next = randomStream(Math.imul(keyIndex + 1, 0x9e3779b1) ^ number);
  for (let at = HEADER_BYTES; at < value.length; at++) value[at] = next() & 0xff;
  value.writeUInt32LE(crc32c(value.subarray(4)), 0);
  return value;
}

interface Write {
  number: number;
  deletion: boolean;
}

interface KeyHistory {
  started: number;
  /** Highest number that anybody was told: acknowledged, or read. */
  acknowledged: number;
  /** Highest version that anybody was told. */
  version: number;
  /** The newest acknowledged write and all later ones. */
  possible: Write[];
}

/** What was known when a read began. */
export interface ReadStart {
  keyIndex: number;
  acknowledged: number;
  version: number;
  /** Whether absence is right because of what was possible when it began. */
  mayBeAbsent: boolean;
}

const VIOLATIONS_KEPT_MAX = 100;

export class ChaosChecker {
  readonly #keys: KeyHistory[];
  readonly violations: string[] = [];
  violationCount = 0;
  writesAcknowledged = 0;
  writesUnknown = 0;
  reads = 0;

  constructor(keyCount: number) {
    this.#keys = Array.from({ length: keyCount }, () => ({
      started: 0,
      acknowledged: 0,
      version: 0,
      possible: [{ number: 0, deletion: true }],
    }));
  }

  /** The number of the next write of this key; call before it is sent. */
  writeStarts(keyIndex: number, deletion: boolean): number {
    const key = this.#key(keyIndex);
    const number = ++key.started;
    key.possible.push({ number, deletion });
    return number;
  }

  /** `version` 0: a deletion that found nothing. */
  writeAcknowledged(keyIndex: number, number: number, version: number): void {
    const key = this.#key(keyIndex);
    this.writesAcknowledged++;
    if (version !== 0 && version < key.version) {
      this.#violation(keyIndex, `write ${number} got version ${version} < ${key.version}`);
    }
    this.#known(key, number, version);
  }

  writeUnknown(): void {
    this.writesUnknown++;
  }

  readStarts(keyIndex: number): ReadStart {
    const { acknowledged, version, possible } = this.#key(keyIndex);
    const mayBeAbsent = possible.some(({ deletion }) => deletion);
    return { keyIndex, acknowledged, version, mayBeAbsent };
  }

  readEnds(start: ReadStart, entry: { value: Uint8Array; version: number } | undefined): void {
    const { keyIndex } = start;
    const key = this.#key(keyIndex);
    this.reads++;
    if (entry === undefined) {
      // A deletion may have come and gone between start and end: whatever is possible now counts.
      if (!start.mayBeAbsent && !key.possible.some(({ deletion }) => deletion)) {
        // Deletions that were both started and overwritten meanwhile are not remembered.
        if (key.acknowledged === start.acknowledged) {
          this.#violation(keyIndex, `lost: write ${key.acknowledged} was acknowledged`);
        }
      }
      return;
    }
    const number = this.#numberOf(keyIndex, entry.value);
    if (number === undefined) return;
    if (number < start.acknowledged) {
      this.#violation(keyIndex, `read write ${number} after ${start.acknowledged} was known`);
    }
    if (number > key.started) this.#violation(keyIndex, `read write ${number} before it was sent`);
    if (entry.version < start.version) {
      this.#violation(keyIndex, `version ${entry.version} after ${start.version}`);
    }
    this.#known(key, number, entry.version);
  }

  #known(key: KeyHistory, number: number, version: number): void {
    key.acknowledged = Math.max(key.acknowledged, number);
    key.version = Math.max(key.version, version);
    key.possible = key.possible.filter((write) => write.number >= key.acknowledged);
  }

  /** The write that a value stands for; undefined (and a violation) if it is not whole. */
  #numberOf(keyIndex: number, value: Uint8Array): number | undefined {
    const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    const whole =
      bytes.length >= HEADER_BYTES &&
      bytes.readUInt32LE(12) === bytes.length &&
      bytes.readUInt32LE(0) === crc32c(bytes.subarray(4));
    if (!whole) {
      this.#violation(keyIndex, `torn value of ${bytes.length} bytes`);
      return undefined;
    }
    if (bytes.readUInt32LE(4) !== keyIndex) {
      this.#violation(keyIndex, `value of key ${bytes.readUInt32LE(4)}`);
      return undefined;
    }
    return bytes.readUInt32LE(8);
  }

  #violation(keyIndex: number, what: string): void {
    this.violationCount++;
    if (this.violations.length < VIOLATIONS_KEPT_MAX) {
      this.violations.push(`key ${keyIndex}: ${what}`);
    }
  }

  #key(keyIndex: number): KeyHistory {
    const key = this.#keys[keyIndex];
    if (key === undefined) throw new RangeError(`key ${keyIndex} of ${this.#keys.length}`);
    return key;
  }
}
