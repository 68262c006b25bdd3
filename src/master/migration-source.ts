/**
 * Gives a tablet away: hands out its pieces to the target that asks for them (docs/migration.md).
 *
 * Rule: nothing here decides whose the tablet is. Up to the release the source may give up by
 * itself, when nobody asks any more or writes have been refused for too long, and then serves as
 * before; a target that comes later finds the migration unknown. From the release on it waits for
 * the coordinator, who alone knows the end.
 */
import type { MasterCore, MigrationCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import { RekindleError } from '../rpc/errors.js';
import type { SlotRange } from '../rpc/messages.js';
import { parseRequest } from '../rpc/request-schemas.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import type { BinaryCall } from '../rpc/transport.js';
import { EndedMigrations } from './ended-migrations.js';
import type { OwnershipNotes } from './ownership-notes.js';

const checkMs = 100;
const idleMsMax = 10_000;
/** Writes wait for the last pieces, and for these to be durable at the target. */
const frozenMsMax = 3_000;

export interface MigrationSourceOptions {
  core: Pick<MasterCore, 'startMigration' | 'mergeTablets'>;
  notes: Pick<OwnershipNotes, 'within'>;
  /** Throws if a leader of a later term has been heard of. */
  checkTerm: (term: number) => void;
  log: Log;
  /** ms on any clock that does not go back. */
  now?: () => number;
}

interface Giving {
  request: RequestOf<'START_MIGRATION'>;
  core: MigrationCore;
  askedMs: number;
  frozenMs: number | null;
  released: boolean;
}

export class MigrationSource {
  readonly #options: MigrationSourceOptions;
  #giving: Giving | null = null;
  readonly #ended = new EndedMigrations();
  readonly #timer: NodeJS.Timeout;

  constructor(options: MigrationSourceOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.expire(), checkMs);
    this.#timer.unref();
  }

  start(request: RequestOf<'START_MIGRATION'>): ReplyOf<'START_MIGRATION'> {
    this.#options.checkTerm(request.term);
    const { migrationId } = request;
    if (this.#ended.has(migrationId)) throw unknown(migrationId);
    if (this.#giving !== null) {
      throw new RekindleError('RETRY', 'a tablet is given away already', { retryAfterMs: 100 });
    }
    const core = this.#startWhole(request);
    const askedMs = this.#now();
    this.#giving = { request, core, askedMs, frozenMs: null, released: false };
    this.#options.log.info({ ...request }, 'a tablet is given away');
    const { buckets, markSegmentId, markOffset } = core;
    const ownerships = this.#options.notes.within(request);
    return { buckets, segmentId: markSegmentId, offset: markOffset, ownerships };
  }

  /** What the map has as one tablet may be several here: a merge or a split was cut short. */
  #startWhole({ tableId, startSlot, endSlot }: SlotRange): MigrationCore {
    const { core } = this.#options;
    const range = { tableId, startSlot, endSlot };
    try {
      return core.startMigration(range);
    } catch (thrown) {
      const error = asNativeError(thrown);
      if (error.code !== 'INVALID_ARGUMENT') throw error;
    }
    try {
      core.mergeTablets(range);
      return core.startMigration(range);
    } catch (thrown) {
      throw asNativeError(thrown);
    }
  }

  data(call: BinaryCall): void {
    const fail = (thrown: unknown): void => call.fail(asNativeError(thrown));
    try {
      const request = parseRequest('GET_MIGRATION_DATA', call.body);
      const { kind, from, end } = request;
      const { core } = this.#of(request.migrationId);
      if (kind === 'results') {
        call.reply(core.results(from));
        return;
      }
      const piece = kind === 'scan' ? core.scan(from, end) : core.delta(from, end);
      piece.then((bytes) => call.reply(bytes), fail);
    } catch (thrown) {
      fail(thrown);
    }
  }

  freeze({ migrationId, reads }: RequestOf<'FREEZE_TABLET'>): ReplyOf<'FREEZE_TABLET'> {
    const giving = this.#of(migrationId);
    try {
      if (reads) giving.core.release();
      else giving.core.freeze();
    } catch (thrown) {
      throw asNativeError(thrown);
    }
    giving.frozenMs ??= this.#now();
    giving.released ||= reads;
    return {};
  }

  /** The coordinator has given it up. */
  end({ migrationId, term }: RequestOf<'END_MIGRATION'>): void {
    this.#options.checkTerm(term);
    this.#end(migrationId, 'the coordinator has given it up');
  }

  /** The tablet belongs to somebody else, or to nobody. */
  dropped(range: SlotRange): void {
    const request = this.#giving?.request;
    if (request === undefined || request.tableId !== range.tableId) return;
    if (request.startSlot > range.endSlot || range.startSlot > request.endSlot) return;
    this.#end(request.migrationId, 'the tablet was dropped');
  }

  expire(): void {
    if (this.#giving === null || this.#giving.released) return;
    const { askedMs, frozenMs, request } = this.#giving;
    const nowMs = this.#now();
    const frozenTooLong = frozenMs !== null && nowMs - frozenMs > frozenMsMax;
    if (frozenTooLong || nowMs - askedMs > idleMsMax) {
      this.#end(request.migrationId, 'the target does not get on');
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #end(migrationId: number, why: string): void {
    this.#ended.add(migrationId);
    if (this.#giving?.request.migrationId !== migrationId) return;
    this.#giving.core.end();
    this.#giving = null;
    this.#options.log.info({ migrationId, why }, 'a tablet is not given away any more');
  }

  #of(migrationId: number): Giving {
    if (this.#giving?.request.migrationId !== migrationId) throw unknown(migrationId);
    this.#giving.askedMs = this.#now();
    return this.#giving;
  }

  #now(): number {
    return (this.#options.now ?? (() => performance.now()))();
  }
}

function unknown(migrationId: number): RekindleError {
  return new RekindleError('RECOVERY_UNKNOWN', `migration ${migrationId} is not known here`);
}
