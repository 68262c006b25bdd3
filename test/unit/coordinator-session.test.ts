/**
 * Calls to whoever leads, over real sockets: redirects, coordinators that are gone, silent or not
 * ready, and addresses that come from DNS and change.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { coordinatorAddresses, type SrvRecord } from '../../src/rpc/coordinator-addresses.js';
import { CoordinatorSession } from '../../src/rpc/coordinator-session.js';
import { RekindleError } from '../../src/rpc/errors.js';
import { WsLinkPool } from '../../src/rpc/link-pool.js';
import { startEndpoint } from './rpc-fixture.js';

const LIMIT_MS = 20_000;

/** What each coordinator answers to LIST_TABLES; null: nothing, not even a PING. */
type Behaviour = { answer: () => 'leads' | RekindleError | null; asked: number };

interface Scene {
  addresses: string[];
  behaviours: Behaviour[];
  pool: WsLinkPool;
  session(seeds: readonly string[]): CoordinatorSession;
}

const leads = () => 'leads' as const;
const silent = () => null;
const standsBy = (leader: () => string) => () =>
  new RekindleError('COORDINATOR_UNAVAILABLE', 'stands by', { details: { coordinator: leader() } });
const never = new Promise<never>(() => undefined);

async function withCoordinators(
  answers: Behaviour['answer'][],
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  const behaviours = answers.map((answer): Behaviour => ({ answer, asked: 0 }));
  const endpoints = await Promise.all(
    behaviours.map((behaviour) =>
      startEndpoint({}, (endpoint) => {
        endpoint.handle('PING', () => {
          if (behaviour.answer() === null) return never;
          return { serverListVersion: 0, member: true, lagMs: 0 };
        });
        endpoint.handle('LIST_TABLES', () => {
          behaviour.asked += 1;
          const answer = behaviour.answer();
          if (answer === null) return never;
          if (answer instanceof RekindleError) throw answer;
          return { tables: [] };
        });
      }),
    ),
  );
  const pool = new WsLinkPool({
    identity: () => ({ role: 'client', clusterId: null, serverId: null }),
  });
  const addresses = endpoints.map(({ address }) => address);
  try {
    await body({
      addresses,
      behaviours,
      pool,
      session: (seeds) =>
        new CoordinatorSession({
          pool,
          addresses: coordinatorAddresses({ addresses: seeds, service: null }),
          random: () => 0.5,
        }),
    });
  } finally {
    pool.close();
    for (const { endpoint } of endpoints) await endpoint.close();
  }
}

const asked = (scene: Scene): number[] => scene.behaviours.map((behaviour) => behaviour.asked);
const limits = { timeoutMs: LIMIT_MS };

test('a redirect is followed, also to one that was not named, and remembered', async () => {
  let leader = '';
  await withCoordinators([standsBy(() => leader), leads], async (scene) => {
    leader = scene.addresses[1] ?? '';
    const session = scene.session(scene.addresses.slice(0, 1));
    await session.call('LIST_TABLES', {}, limits);
    await session.call('LIST_TABLES', {}, limits);
    assert.deepEqual(asked(scene), [1, 2]);
    assert.equal(session.problem, null);
  });
});

test('a call that may have been carried out once never says that it was not', async () => {
  const refuses = () => new RekindleError('SHUTTING_DOWN', 'stops');
  let first = true;
  const losesOnce = () => {
    const lost = first;
    first = false;
    return lost ? new RekindleError('CONNECTION_LOST', 'committed, not answered') : refuses();
  };
  const outcomeOf = async (answers: Behaviour['answer'][]): Promise<string | undefined> => {
    let outcome: string | undefined;
    await withCoordinators(answers, async (scene) => {
      const session = scene.session(scene.addresses);
      await session.call('LIST_TABLES', {}, { timeoutMs: 600 }).catch((error: RekindleError) => {
        outcome = error.outcome;
      });
    });
    return outcome;
  };
  assert.equal(await outcomeOf([refuses, refuses]), 'not-applied');
  assert.equal(await outcomeOf([losesOnce, refuses]), 'unknown');
});

test('standbys that point at one another, or at nobody, cost a round, not the call', async () => {
  const addresses: string[] = [];
  const at = (index: number) => standsBy(() => addresses[index] ?? '');
  await withCoordinators([at(1), at(0), at(7)], async (scene) => {
    addresses.push(...scene.addresses);
    const session = scene.session(scene.addresses);
    setTimeout(() => {
      const [, , third] = scene.behaviours;
      if (third !== undefined) third.answer = leads;
    }, 100);
    await session.call('LIST_TABLES', {}, limits);
    const hopeless = scene.session(scene.addresses.slice(0, 2));
    await assert.rejects(hopeless.call('LIST_TABLES', {}, { timeoutMs: 200 }), {
      code: 'COORDINATOR_UNAVAILABLE',
      outcome: 'not-applied',
    });
    assert.ok(hopeless.problem);
  });
});

test('one that is gone and one that stands still are left for one that answers', async () => {
  await withCoordinators([silent, leads], async (scene) => {
    const session = scene.session(['127.0.0.1:1', ...scene.addresses]);
    const fromMs = performance.now();
    await session.call('LIST_TABLES', {}, limits);
    assert.ok(performance.now() - fromMs < LIMIT_MS / 2);
    assert.deepEqual(asked(scene), [1, 1]);
    // The only one there is gets all the time of the call.
    const alone = scene.session(scene.addresses.slice(0, 1));
    const call = alone.call('LIST_TABLES', {}, { timeoutMs: 1_500 });
    await assert.rejects(call, { code: 'COORDINATOR_UNAVAILABLE' });
    assert.deepEqual(asked(scene), [2, 1]);
  });
});

test('what is refused for good is thrown, and an aborted call ends', async () => {
  const refusal = () => new RekindleError('TABLE_NOT_FOUND', 'no');
  await withCoordinators([refusal, leads], async (scene) => {
    const session = scene.session(scene.addresses);
    await assert.rejects(session.call('LIST_TABLES', {}, limits), { code: 'TABLE_NOT_FOUND' });
    const abort = new AbortController();
    const nobody = scene.session(['127.0.0.1:1', '127.0.0.1:2']);
    setTimeout(() => abort.abort(), 50);
    const call = nobody.call('LIST_TABLES', {}, { ...limits, signal: abort.signal });
    await assert.rejects(call, { code: 'ABORTED' });
  });
});

test('SRV records are asked in their order, and again when nobody answers', async () => {
  await withCoordinators([leads], async (scene) => {
    const port = Number(scene.addresses[0]?.split(':')[1]);
    const record = (at: number, priority: number, weight: number): SrvRecord => ({
      name: '127.0.0.1',
      port: at,
      priority,
      weight,
    });
    const names: string[] = [];
    let records: SrvRecord[] | null = null;
    const resolve = async (name: string): Promise<SrvRecord[]> => {
      names.push(name);
      if (records === null) throw new Error('ENOTFOUND');
      return records;
    };
    const addresses = coordinatorAddresses({ addresses: [], service: 'db.test' }, resolve);
    const session = new CoordinatorSession({ pool: scene.pool, addresses, random: () => 0.5 });
    const unknown = session.call('LIST_TABLES', {}, { timeoutMs: 100 });
    await assert.rejects(unknown, { code: 'COORDINATOR_UNAVAILABLE' });
    records = [record(3, 2, 0), record(2, 1, 1), record(1, 1, 9)];
    assert.deepEqual(await addresses(), ['127.0.0.1:1', '127.0.0.1:2', '127.0.0.1:3']);
    setTimeout(() => {
      records = [record(port, 1, 1)];
    }, 100);
    await session.call('LIST_TABLES', {}, limits);
    assert.deepEqual([...new Set(names)], ['_rekindle._tcp.db.test']);
    assert.deepEqual(asked(scene), [1]);
  });
});
