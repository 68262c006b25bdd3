/**
 * `EtcdStorage` against real etcd processes: what every storage does, and what only a network can
 * do to one — late and lost answers, members that die, a leader that is cut off —, with and without
 * TLS and credentials.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { EtcdCluster, withoutEtcd } from '../../bench/etcd.js';
import {
  EtcdStorage,
  type EtcdStorageOptions,
} from '../../src/coordinator/external-storage/etcd.js';
import { parseStorageUrl } from '../../src/coordinator/external-storage/storage-url.js';
import { withFolder } from './fixture.js';
import { LossyProxy } from './lossy-proxy.js';
import { conformance, hasCode, take, until, watched } from './storage-conformance.js';

let shared: EtcdCluster | null = null;

before(async () => {
  if (withoutEtcd === false) shared = await EtcdCluster.start(1);
});

after(async () => {
  await shared?.stop();
});

function one(): EtcdCluster {
  assert.ok(shared);
  return shared;
}

/** Everything below a prefix that nobody else has. */
function open(
  endpoints: readonly string[],
  prefix: string = randomUUID(),
  options: Partial<EtcdStorageOptions> = {},
): Promise<EtcdStorage> {
  const address = parseStorageUrl(`etcd://${endpoints.join(',')}/${prefix}`);
  return EtcdStorage.open(address, { log: () => undefined, attemptTimeoutMs: 300, ...options });
}

conformance('etcd', withoutEtcd, async () => {
  const prefix = randomUUID();
  const opened = [await open(one().endpoints, prefix)];
  return {
    storage: opened[0] as EtcdStorage,
    again: async () => {
      const storage = await open(one().endpoints, prefix);
      opened.push(storage);
      return storage;
    },
    close: async () => {
      for (const storage of opened) await storage.close();
    },
  };
});

const limits = { skip: withoutEtcd, timeout: 60_000 };

interface Faulty {
  /** Behind the proxy. */
  storage: EtcdStorage;
  /** Beside it. */
  direct: EtcdStorage;
  proxy: LossyProxy;
}

async function withFaults(
  body: (faulty: Faulty) => Promise<void>,
  options: Partial<EtcdStorageOptions> = {},
): Promise<void> {
  const prefix = randomUUID();
  const proxy = await LossyProxy.start(one().endpoints[0] ?? '');
  const storage = await open([proxy.endpoint], prefix, options);
  const direct = await open(one().endpoints, prefix, options);
  try {
    await body({ storage, direct, proxy });
  } finally {
    await storage.close();
    await direct.close();
    await proxy.stop();
  }
}

test('answers that are lost after the change: each commit happens once', limits, () =>
  withFaults(async ({ storage, direct, proxy }) => {
    const { leadership, revision } = await take(storage);
    const seen = watched(direct, (await direct.list()).position);
    let newest = revision;
    for (let i = 1; i <= 5; i++) {
      proxy.fault = 'lose-replies';
      const commit = storage.commit(leadership, newest, [{ key: `servers/${i}`, value: i }]);
      await until('the change', () => seen.changes.length === i);
      await delay(20);
      proxy.fault = 'none';
      newest = await commit;
      assert.equal(seen.changes.at(-1)?.commit?.revision, newest);
    }
    assert.equal((await direct.list()).pairs.length, 5);
    seen.stop();
  }),
);

test('an answer that is lost after a victory: who has won hears of it', limits, () =>
  withFaults(async ({ storage, direct, proxy }) => {
    proxy.fault = 'lose-replies';
    const won = take(direct, 1).then(async ({ leadership }) => {
      const candidacy = { term: 2, candidateId: 'lossy', address: '127.0.0.1:7002' };
      const campaign = storage.campaign(leadership, candidacy);
      const seen = watched(direct, (await direct.list()).position);
      await delay(200);
      proxy.fault = 'none';
      const { leader } = await campaign;
      seen.stop();
      assert.equal(leader.candidateId, 'lossy');
      return leader;
    });
    const leader = await won;
    assert.deepEqual((await direct.list()).leaderState.leader, leader);
    await storage.confirm(leader);
  }),
);

test('an etcd that stands still: the commit waits, and happens once', limits, () =>
  withFaults(async ({ storage, direct, proxy }) => {
    const { leadership, revision } = await take(storage);
    proxy.fault = 'stall';
    const commit = storage.commit(leadership, revision, [{ key: 'servers/1', value: 1 }]);
    const confirmed = storage.confirm(leadership);
    await delay(1_500);
    assert.equal((await direct.list()).revision, revision);
    proxy.fault = 'none';
    proxy.cut();
    const newest = await commit;
    await confirmed;
    assert.equal((await direct.list()).revision, newest);
  }),
);

test('a leader that is cut off and replaced changes nothing, and is told so', limits, () =>
  withFaults(async ({ storage, direct, proxy }) => {
    const first = await take(storage);
    const stale = watched(storage, (await direct.list()).position);
    proxy.fault = 'stall';
    const write = [{ key: 'servers/1', value: 'first' }];
    const commit = storage.commit(first.leadership, first.revision, write);
    const refused = assert.rejects(commit, hasCode('FENCED'));
    const second = await take(direct, 2);
    const newest = await direct.commit(second.leadership, second.revision, [
      { key: 'servers/1', value: 'second' },
    ]);
    proxy.fault = 'none';
    proxy.cut();
    await refused;
    await until('the watch is lost', () => stale.lost.length === 1);
    await assert.rejects(storage.confirm(first.leadership), hasCode('FENCED'));
    const { pairs, revision } = await direct.list();
    assert.deepEqual(pairs, [{ key: 'servers/1', value: 'second' }]);
    assert.equal(revision, newest);
  }),
);

test('the key of a leader that cannot reach etcd goes by itself', limits, () =>
  withFaults(
    async ({ storage, direct, proxy }) => {
      await storage.announce('c-1', '127.0.0.1:7001');
      const { leadership } = await take(storage);
      const seen = watched(direct, (await direct.list()).position);
      await delay(3_000);
      assert.deepEqual(seen.changes, []);
      proxy.fault = 'stall';
      const gone = () => seen.changes.some(({ leaderState }) => leaderState?.leader === null);
      await until('the lease is over', gone);
      assert.deepEqual(await direct.candidates(), []);
      proxy.fault = 'none';
      proxy.cut();
      await assert.rejects(storage.confirm(leadership), hasCode('FENCED'));
      // It is a candidate again by itself, and may win again under a new lease.
      await until('the next renewal', () => seen.changes.length >= 2);
      assert.deepEqual(await direct.candidates(), ['127.0.0.1:7001']);
      const again = await take(storage, 2);
      assert.ok(again.leadership.version > leadership.version);
      seen.stop();
    },
    { leaseSeconds: 2 },
  ),
);

test(
  'three members: one is killed, one stands still, nothing is lost or done twice',
  limits,
  async () => {
    const etcd = await EtcdCluster.start(3);
    const prefix = randomUUID();
    const leader = await open(etcd.endpoints, prefix);
    const standby = await open([...etcd.endpoints].reverse(), prefix);
    try {
      const { leadership, revision } = await take(leader);
      let newest = revision;
      const revisions: number[] = [];
      const commits = async (count: number): Promise<void> => {
        for (let i = 0; i < count; i++) {
          const key = `servers/${revisions.length + 1}`;
          newest = await leader.commit(leadership, newest, [{ key, value: newest }]);
          revisions.push(newest);
        }
      };
      await commits(20);
      for (let victim = 0; victim < 3; victim++) {
        const working = commits(40);
        await delay(30);
        await etcd.kill(victim);
        await working;
        await commits(20);
        const { revision: seen, pairs } = await standby.list();
        assert.equal(seen, newest);
        assert.equal(pairs.length, revisions.length);
        etcd.restart(victim);
        await delay(1_500);
      }
      etcd.signal(1, 'SIGSTOP');
      await commits(20);
      etcd.signal(1, 'SIGCONT');
      assert.deepEqual(
        revisions,
        [...new Set(revisions)].sort((a, b) => a - b),
      );
      assert.equal((await standby.list()).pairs.length, revisions.length);
    } finally {
      await leader.close();
      await standby.close();
      await etcd.stop();
    }
  },
);

test('users and passwords: a wrong one is refused at once, a right one works', limits, async () => {
  const etcd = await EtcdCluster.start(1);
  try {
    await etcd.post('auth/user/add', { name: 'root', password: 'secret' });
    await etcd.post('auth/user/grant', { user: 'root', role: 'root' });
    await etcd.post('auth/enable', {});
    await withFolder(async (folder) => {
      const passwordFile = join(folder, 'password');
      writeFileSync(passwordFile, 'secret\n');
      const host = etcd.endpoints[0];
      const log = (): void => undefined;
      for (const url of [
        `etcd://root:secret@${host}/a`,
        `etcd://root@${host}/b?passwordFile=${encodeURIComponent(passwordFile)}`,
      ]) {
        const storage = await EtcdStorage.open(parseStorageUrl(url), { log });
        const { position } = await storage.list();
        const seen = watched(storage, position);
        const { leadership, revision } = await take(storage);
        await storage.commit(leadership, revision, [{ key: 'servers/1', value: 1 }]);
        await until('the watch works too', () => seen.changes.length === 2);
        seen.stop();
        await storage.close();
      }
      for (const user of ['root:wrong@', '']) {
        const storage = await EtcdStorage.open(parseStorageUrl(`etcd://${user}${host}/c`), { log });
        await assert.rejects(storage.list(), (error: unknown) =>
          ['INVALID_ARGUMENT', 'UNAUTHENTICATED'].some((code) => hasCode(code)(error)),
        );
        await storage.close();
      }
    });
  } finally {
    await etcd.stop();
  }
});

const withoutOpenssl: string | false =
  withoutEtcd ||
  (spawnSync('openssl', ['version']).status === 0 ? false : 'there is no program openssl');

test(
  'TLS: only with the right authority and a certificate of its own',
  {
    skip: withoutOpenssl,
    timeout: 60_000,
  },
  () =>
    withFolder(async (folder) => {
      const file = (name: string): string => join(folder, name);
      const openssl = (...commandArguments: string[]): void => {
        const { status, stderr } = spawnSync('openssl', commandArguments, { encoding: 'utf8' });
        assert.equal(status, 0, stderr);
      };
      const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
      const name = ['-days', '2', '-subj', '/CN=rekindle-test'];
      openssl(
        'req',
        '-x509',
        ...newKey,
        ...name,
        '-keyout',
        file('ca.key'),
        '-out',
        file('ca.pem'),
      );
      const request = ['-keyout', file('own.key'), '-out', file('own.csr')];
      openssl('req', ...newKey, '-subj', '/CN=127.0.0.1', ...request);
      writeFileSync(file('extensions'), 'subjectAltName=IP:127.0.0.1\n');
      openssl(
        ...['x509', '-req', '-in', file('own.csr'), '-days', '2', '-out', file('own.pem')],
        ...['-CA', file('ca.pem'), '-CAkey', file('ca.key'), '-CAcreateserial'],
        ...['-extfile', file('extensions')],
      );
      const tls = ['--cert-file', file('own.pem'), '--key-file', file('own.key')];
      const mutual = ['--client-cert-auth', '--trusted-ca-file', file('ca.pem')];
      const etcd = await EtcdCluster.start(1, [...tls, ...mutual], 'https');
      const at = (options: string) =>
        EtcdStorage.open(parseStorageUrl(`etcds://${etcd.endpoints[0]}/tls${options}`), {
          log: () => undefined,
        });
      try {
        const own = `cert=${file('own.pem')}&key=${file('own.key')}`;
        const storage = await at(`?ca=${file('ca.pem')}&${own}`);
        const { leadership, revision } = await take(storage);
        await storage.commit(leadership, revision, [{ key: 'servers/1', value: 1 }]);
        await storage.close();
        for (const options of ['', `?ca=${file('ca.pem')}`]) {
          const stranger = await at(options);
          await assert.rejects(stranger.list(), hasCode('CONNECTION_LOST'));
          await stranger.close();
        }
      } finally {
        await etcd.stop();
      }
    }),
);
