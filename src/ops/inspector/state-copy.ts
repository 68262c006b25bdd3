/** A server's copy of the coordinator's state (docs/formats.md §5), read and checked. */
import { crc32c } from '../checksum.js';

export interface StateCopyReport {
  clusterId: string;
  term: number;
  revision: number;
  keys: string[];
}

interface StateCopyFile {
  clusterId: string;
  term: number;
  revision: number;
  crc32c: number;
  state: string;
}

/** What the file says, or what is wrong with it. */
export function decodeStateCopy(text: string): StateCopyReport | string {
  try {
    const copy = JSON.parse(text) as Partial<StateCopyFile> | null;
    const { clusterId, term, revision, state } = copy ?? {};
    if (typeof state !== 'string' || copy?.crc32c !== crc32c(Buffer.from(state, 'utf8'))) {
      return 'the checksum is wrong';
    }
    if (clusterId === undefined || term === undefined || revision === undefined) {
      return 'a field is missing';
    }
    const { format, pairs } = JSON.parse(state) as { format: number; pairs: { key: string }[] };
    if (format !== 1) return `unknown format ${format}`;
    return { clusterId, term, revision, keys: pairs.map(({ key }) => key) };
  } catch (error) {
    if (error instanceof SyntaxError) return 'the file is no JSON';
    throw error;
  }
}
