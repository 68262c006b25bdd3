/**
 * One lease in etcd, of one process: granted when it is first needed, kept alive, granted anew when
 * etcd has let it go. What was put under a lost lease is gone; the candidate's own record is put
 * again, the leader's is not: who has lost it must win it again.
 */
import { asRekindleError, RekindleError } from '../../rpc/errors.js';
import type { Log } from '../context.js';
import type { EtcdClient } from './etcd-client.js';

const CALL_TIMEOUT_MS = 5_000;
const REVOKE_TIMEOUT_MS = 500;
const GRPC_NOT_FOUND = 5;
/** Renewals in the time of a lease. */
const RENEWALS = 3;

export class EtcdLease {
  private id: Promise<string> | null = null;
  /** What `id` has resolved with. */
  private current: string | null = null;
  private timer: NodeJS.Timeout | null = null;
  private announced: { key: string; value: string } | null = null;
  private announcedUnder: string | null = null;
  private closed = false;

  constructor(
    private readonly client: EtcdClient,
    private readonly seconds: number,
    private readonly log: Log,
  ) {}

  /** Runs `use` with a lease that lives; once more if etcd has let it go. */
  async hold<T>(use: (lease: string) => Promise<T>): Promise<T> {
    const lease = await this.granted();
    try {
      return await use(lease);
    } catch (error) {
      if (asRekindleError(error).details?.grpcCode !== GRPC_NOT_FOUND) throw error;
      this.forget(lease);
      return use(await this.granted());
    }
  }

  async announce(pair: { key: string; value: string }): Promise<void> {
    this.announced = pair;
    await this.hold(async (lease) => {
      const limits = { timeoutMs: CALL_TIMEOUT_MS };
      await this.client.call('kv/put', { ...pair, lease }, limits);
      this.announcedUnder = lease;
    });
  }

  /** Gives back what hangs on the lease; if etcd cannot be reached the lease runs out by itself. */
  async close(): Promise<void> {
    this.closed = true;
    if (this.timer !== null) clearTimeout(this.timer);
    if (this.id === null) return;
    try {
      const ID = await this.id;
      await this.client.call('lease/revoke', { ID }, { timeoutMs: REVOKE_TIMEOUT_MS });
    } catch (error) {
      this.log('debug', 'the lease runs out by itself', { error: asRekindleError(error).message });
    }
  }

  private granted(): Promise<string> {
    if (this.closed) throw new RekindleError('SHUTTING_DOWN', 'the storage was closed');
    this.id ??= this.grant();
    return this.id;
  }

  private async grant(): Promise<string> {
    try {
      const body = { TTL: String(this.seconds) };
      const limits = { timeoutMs: CALL_TIMEOUT_MS };
      const { ID } = await this.client.call<{ ID: string }>('lease/grant', body, limits);
      this.current = ID;
      this.renewLater(ID);
      return ID;
    } catch (error) {
      this.id = null;
      throw error;
    }
  }

  private forget(lease: string): void {
    this.log('warn', 'etcd has let the lease go: it was not renewed in time', { lease });
    if (this.timer !== null) clearTimeout(this.timer);
    this.id = null;
    this.current = null;
  }

  private renewLater(lease: string): void {
    if (this.closed) return;
    this.timer = setTimeout(
      () => {
        this.renew(lease).catch((error: unknown) => {
          if (this.closed) return;
          const { message } = asRekindleError(error);
          this.log('warn', 'the lease in etcd was not renewed', { error: message });
          this.renewLater(lease);
        });
      },
      (this.seconds * 1_000) / RENEWALS,
    );
    this.timer.unref();
  }

  private async renew(ID: string): Promise<void> {
    // A later one has a loop of its own.
    if (this.current !== null && this.current !== ID) return;
    const limits = { timeoutMs: CALL_TIMEOUT_MS };
    type KeepAlive = { result: { TTL?: string } };
    const { result } = await this.client.call<KeepAlive>('lease/keepalive', { ID }, limits);
    if (this.closed) return;
    const lives = Number(result.TTL ?? 0) > 0;
    if (!lives) this.forget(ID);
    if (this.announced !== null && this.announcedUnder !== this.current) {
      await this.announce(this.announced);
    }
    if (lives) this.renewLater(ID);
  }
}
