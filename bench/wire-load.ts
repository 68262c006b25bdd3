/**
 * The native load generator (native/bench, `rekindle-bench wire`): what a server reaches when the
 * client costs next to nothing. The same loop drives Rekindle and servers that speak RESP or
 * memcached's text protocol.
 */
import { type Figure, runCore } from './core-binary.js';

export interface WireLoad {
  dialect: 'rekindle' | 'resp' | 'memcached';
  /** host:port. */
  address: string;
  work: 'read' | 'write';
  connections: number;
  /** Of one message. */
  operations: number;
  objects: number;
  valueBytes: number;
  tableId: number;
  ms: number;
}

/** Operations a second, and the median time of a message in µs. */
export async function runWireLoad(
  binary: string,
  load: WireLoad,
  command: readonly string[],
): Promise<{ perSecond: number; messageP50Us: number }> {
  const words = [
    `dialect=${load.dialect}`,
    `address=${load.address}`,
    `work=${load.work}`,
    `connections=${load.connections}`,
    `operations=${load.operations}`,
    `objects=${load.objects}`,
    `value-bytes=${load.valueBytes}`,
    `table=${load.tableId}`,
    `ms=${load.ms}`,
  ];
  const figures = await runCore(binary, ['wire', ...words], command);
  const value = (name: string): number =>
    figures.find((figure: Figure) => figure.name === name)?.value ?? Number.NaN;
  return { perSecond: value('rate'), messageP50Us: value('message-p50') };
}
