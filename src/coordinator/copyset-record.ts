/**
 * The copysets of the cluster as a record of the coordinator's state: changed by the same commits
 * that change who is up, so that a server list and its copysets always belong together. Without the
 * record replicas are placed at random. Which groups there are is decided in `copysets.ts`.
 */
import type { CoordinatorState, CopysetRecord, ServerRecord } from './coordinator-state.js';
import { copysetKey } from './coordinator-state.js';
import { updateCopysets } from './copysets.js';
import type { StorageWrite } from './external-storage/external-storage.js';

/** What to write when these servers are up; nothing if the groups stay as they are. */
export function copysetWrites(
  state: CoordinatorState,
  up: readonly ServerRecord[],
): StorageWrite[] {
  const record = state.copysets;
  if (record === null) return [];
  const sets = rebuilt(state, record, up);
  if (JSON.stringify(sets) === JSON.stringify(record.sets)) return [];
  return [{ key: copysetKey, value: { ...record, sets } satisfies CopysetRecord }];
}

/** Another scatter width: all groups anew, 0: none any more. Segments that exist stay in place. */
export function scatterWidthWrites(
  state: CoordinatorState,
  scatterWidth: number | undefined,
): StorageWrite[] {
  const before = state.copysets;
  if (scatterWidth === undefined || scatterWidth === (before?.scatterWidth ?? 0)) return [];
  if (scatterWidth === 0) return [{ key: copysetKey, value: undefined }];
  const empty: CopysetRecord = { scatterWidth, sets: [] };
  const up = state.exists ? state.upServers() : [];
  const sets = up.length === 0 ? [] : rebuilt(state, empty, up);
  return [{ key: copysetKey, value: { scatterWidth, sets } satisfies CopysetRecord }];
}

function rebuilt(
  state: CoordinatorState,
  { scatterWidth, sets }: CopysetRecord,
  up: readonly ServerRecord[],
): number[][] {
  const { replicas, allowSameHost } = state.cluster;
  const backups = up.filter(({ backup, drain }) => backup && drain === undefined);
  return updateCopysets(sets, backups, { replicas, scatterWidth, allowSameHost });
}
