/** The vectors of `test/golden` and how their bytes are written down. */
import { readFileSync } from 'node:fs';

/** Tests run compiled, in `build` or elsewhere: vectors are found from the working directory. */
export function golden<T>(name: string): T {
  return JSON.parse(readFileSync(`test/golden/${name}.json`, 'utf8')) as T;
}

export const bytesOf = (hex: string): Buffer => Buffer.from(hex, 'hex');
export const hexOf = (value: Uint8Array): string => Buffer.from(value).toString('hex');

/** Bytes that are zeros but for some patches. */
export interface Patched {
  length: number;
  patches: { at: number; bytes: string }[];
}

export function patched({ length, patches }: Patched): Buffer {
  const bytes = Buffer.alloc(length);
  for (const patch of patches) bytesOf(patch.bytes).copy(bytes, patch.at);
  return bytes;
}
