/** What the package `rekindle` exports. Listed by hand: each name here is a promise. */

export { type ConnectionString, parseConnectionString } from '../rpc/connection-string.js';
export { RekindleError } from '../rpc/errors.js';
export type { ClusterStatus, ServerEntry, TableInfo, TabletInfo } from '../rpc/messages.js';
export type { Outcome, StatusCode } from '../rpc/status.js';
export { Client, type ConnectOptions, type CreateTableOptions, connect } from './client.js';
export { bytes, type Codec, json, strings, views } from './codec.js';
export {
  type Condition,
  type Entry,
  type Key,
  type OperationOptions,
  type PutEntry,
  Table,
  type WriteOptions,
  type WriteResult,
} from './table.js';
