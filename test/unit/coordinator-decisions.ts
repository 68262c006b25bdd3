/** What tests of the coordinator's pure decisions share. */
import type { CoordinatorState, Decision } from '../../src/coordinator/coordinator-state.js';

/** Writes what was decided; the result of the decision. */
export function applied<T>(state: CoordinatorState, { writes, result }: Decision<T>): T {
  state.apply(structuredClone(writes));
  return result;
}

/** Of the n-th server, on a host of its own. */
export function enlistRequest(n: number, over: object = {}) {
  return {
    nonce: `nonce-${n}`,
    replacesId: null,
    clusterId: null,
    address: `127.0.0.1:${7000 + n}`,
    host: `host-${n}`,
    rack: null,
    master: true,
    backup: true,
    memoryBytes: 1,
    ...over,
  };
}
