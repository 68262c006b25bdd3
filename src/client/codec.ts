/**
 * Codecs turn the values of a typed table into bytes and back: `table.with(json)`. Keys stay bytes
 * or strings. What a decoder throws reaches the caller of the read.
 */

export interface Codec<Read, Write = Read> {
  encode(value: Write): Uint8Array;
  decode(bytes: Buffer): Read;
  /**
   * `decode` gets a view of the message that brought the value instead of bytes of its own: nothing
   * is copied, and as long as a result refers to the view the whole message, up to 16 MiB, stays in
   * memory. For codecs whose results keep no bytes, and for callers who drop them soon.
   */
  readonly views?: boolean;
}

/** The default. Strings are accepted in writes for convenience and stored as UTF-8. */
export const bytes: Codec<Buffer, Uint8Array | string> = {
  encode: (value) => (typeof value === 'string' ? Buffer.from(value) : value),
  decode: (value) => value,
};

/** As `bytes`, without a copy: see `Codec.views`. */
export const views: Codec<Buffer, Uint8Array | string> = { ...bytes, views: true };

export const strings: Codec<string> = {
  views: true,
  encode: (value) => Buffer.from(value, 'utf8'),
  decode: (value) => value.toString('utf8'),
};

// biome-ignore lint/suspicious/noExplicitAny: JSON holds anything; `json<T>()` narrows it.
export const json: Codec<any> = {
  views: true,
  encode: (value) => {
    const text = JSON.stringify(value);
    if (text === undefined) throw new TypeError('value has no JSON form');
    return Buffer.from(text);
  },
  decode: (value) => JSON.parse(value.toString()),
};
