/**
 * One coordinator process: storage, endpoint and links around the `Coordinator`.
 *
 * Order of a start: storage (its lock keeps a second coordinator out) -> restored copy, if one is
 * given -> listen -> load the state and begin a term. Until then callers are told RETRY.
 */
import { readFile } from 'node:fs/promises';
import { Coordinator } from '../coordinator/coordinator.js';
import { LmdbStorage } from '../coordinator/external-storage/lmdb.js';
import { restoreState } from '../coordinator/state-copy.js';
import { createLog, type Log } from '../ops/log.js';
import { RekindleError } from '../rpc/errors.js';
import { WsLinkPool } from '../rpc/link-pool.js';
import type { Durability } from '../rpc/messages.js';
import type { EndpointIdentity } from '../rpc/transport.js';
import { UwsEndpoint } from '../rpc/uws-endpoint.js';
import { checkListenAddress } from './listen-address.js';

export interface CoordinatorProcessOptions {
  /** Folder of its state; locked while it runs. */
  dataDirectory: string;
  /** Address to listen on. Other than loopback only with `insecure`. */
  host: string;
  /** 0: any free port. */
  port: number;
  /** Fixed at the first start of a folder, like the next two; left out: as stored, or 3. */
  replicas?: number;
  durability?: Durability;
  allowSameHost?: boolean;
  /** Of copysets; may be changed at any start. 0, the default: replicas are placed at random. */
  scatterWidth?: number;
  /** A server's copy of the state, for an empty folder. */
  restoreFile?: string;
  insecure?: boolean;
  log?: Log;
  /** Called once if it cannot go on. */
  onFatal?: (error: RekindleError) => void;
}

export interface RunningCoordinator {
  readonly port: number;
  readonly clusterId: string;
  stop(): Promise<void>;
}

/** Starts a coordinator; resolves when it serves. */
export async function startCoordinator(
  options: CoordinatorProcessOptions,
): Promise<RunningCoordinator> {
  checkListenAddress(options.host, options.insecure ?? false);
  const storage = await LmdbStorage.open(options.dataDirectory);
  const log = options.log ?? createLog();
  const write = (
    level: 'debug' | 'info' | 'warn' | 'error',
    message: string,
    fields: Record<string, unknown> = {},
  ): void => log[level](fields, message);
  const identity = (): EndpointIdentity => ({
    role: 'coordinator',
    clusterId: coordinator.clusterId,
    serverId: null,
  });
  const endpoint = new UwsEndpoint({ identity, log: write });
  const links = new WsLinkPool({ identity });
  const coordinator = new Coordinator({
    endpoint,
    links,
    storage,
    config: {
      replicas: options.replicas,
      durability: options.durability,
      allowSameHost: options.allowSameHost,
      scatterWidth: options.scatterWidth,
    },
    log: write,
    ...(options.onFatal === undefined ? {} : { onFatal: options.onFatal }),
  });
  const stop = async (): Promise<void> => {
    await endpoint.close();
    links.close();
    await coordinator.close();
  };
  try {
    if (options.restoreFile !== undefined) await restore(storage, options.restoreFile, log);
    const port = await endpoint.listen(options.host, options.port);
    await coordinator.start();
    const { clusterId } = coordinator;
    if (clusterId === null) throw new RekindleError('INTERNAL', 'a started cluster has an id');
    return { port, clusterId, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function restore(storage: LmdbStorage, file: string, log: Log): Promise<void> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    throw new RekindleError('INVALID_ARGUMENT', `cannot read the copy ${file}: ${cause}`, {
      cause,
    });
  }
  const restored = await restoreState(storage, text);
  log.warn(restored, 'the state was restored from a copy of a server');
}
