/**
 * Codecs turn the values of a typed table into bytes and back: `table.with(json)`. Keys stay bytes
 * or strings. What a decoder throws reaches the caller of the read.
 */

export interface Codec<Read, Write = Read> {
  encode(value: Write): Uint8Array;
  decode(bytes: Buffer): Read;
}

/** The default. Strings are accepted in writes for convenience and stored as UTF-8. */
export const bytes: Codec<Buffer, Uint8Array | string> = {
  encode: (value) => (typeof value === 'string' ? Buffer.from(value) : value),
  decode: (value) => value,
};

export const strings: Codec<string> = {
  encode: (value) => Buffer.from(value, 'utf8'),
  decode: (value) => value.toString('utf8'),
};

// biome-ignore lint/suspicious/noExplicitAny: JSON holds anything; `json<T>()` narrows it.
export const json: Codec<any> = {
  encode: (value) => {
    const text = JSON.stringify(value);
    if (text === undefined) throw new TypeError('value has no JSON form');
    return Buffer.from(text);
  },
  decode: (value) => JSON.parse(value.toString()),
};
