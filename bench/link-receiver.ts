/**
 * The receiver of `rekindle bench link`, a process of its own: `node link-receiver.js MODE MASTER
 * [FOLDER]`. Mode `link` is the real endpoint with a handler that only acknowledges; `replicated`
 * and `fsync` have the real backup behind it, which checks certificates and stores in FOLDER.
 *
 * Says `{"port": …}` on stdout once it listens. Its stdin is its life: when that ends it says what
 * it counted, and ends.
 */
import { BackupService } from '../src/backup/backup-service.js';
import type { BackupCore } from '../src/native/contract.js';
import { loadAddon } from '../src/native/index.js';
import { createLog } from '../src/ops/log.js';
import { RekindleError } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { UwsEndpoint } from '../src/rpc/uws-endpoint.js';

const FRAMES_MAX = 96;
const PIECE_CACHE_BYTES = 64 * 2 ** 20;
/** Free frames, queued KiB, lease: as long as a real answer. */
const acknowledgement = new Uint8Array(12);
const log = createLog({ level: 'warn', format: 'json' });

function onlyAcknowledge(endpoint: UwsEndpoint): void {
  endpoint.handleBinary('BACKUP_WRITE', (call) => call.reply(acknowledgement));
  endpoint.handle('BACKUP_FREE', () => ({}));
}

async function serveBackup(
  endpoint: UwsEndpoint,
  durability: Durability,
  masterId: number,
  directory: string,
): Promise<BackupCore> {
  const addon = loadAddon();
  const core = await addon.openBackup({
    directory,
    framesMax: FRAMES_MAX,
    durability,
    flushIntervalMs: 100,
    // Done later, when there is time: what is measured is the way of the bytes.
    compress: false,
    pieceCacheBytes: PIECE_CACHE_BYTES,
    scrubBytesPerSecond: 0,
    fault: '',
  });
  const clock = () => addon.bootTimeMs();
  const membership = { checkTerm: () => undefined, mayBeMember: () => true };
  const service = new BackupService({ core, ...membership, log, clock });
  service.applyServerList({
    version: 1,
    clusterId: 'bench',
    term: 1,
    replicas: 3,
    durability,
    allowSameHost: false,
    copysets: [],
    servers: [
      {
        serverId: masterId,
        address: '127.0.0.1:1',
        host: 'master',
        rack: null,
        master: true,
        backup: false,
        status: 'up',
        memoryBytes: 0,
      },
    ],
  });
  service.register(endpoint);
  return core;
}

async function main(): Promise<void> {
  const [mode, masterId, directory = ''] = process.argv.slice(2);
  const endpoint = new UwsEndpoint({
    identity: () => ({ role: 'server', clusterId: null, serverId: null }),
    log: (level, message, fields) => log[level](fields, message),
  });
  let core: BackupCore | null = null;
  if (mode === 'link') onlyAcknowledge(endpoint);
  else if (mode === 'replicated' || mode === 'fsync') {
    core = await serveBackup(endpoint, mode, Number(masterId), directory);
  } else throw new RekindleError('INVALID_ARGUMENT', `no mode ${mode}`);
  const port = await endpoint.listen('127.0.0.1', 0);
  process.stdout.write(`${JSON.stringify({ port })}\n`);
  for await (const _ of process.stdin);
  process.stdout.write(`${JSON.stringify(endpoint.stats())}\n`);
  await endpoint.close();
  await core?.close();
}

await main();
