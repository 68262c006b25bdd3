/**
 * The coordinator's watch over servers and the probes of witnesses, over links that answer, refuse,
 * stay silent or break as a test says. Waits are real, but only ever waited for, never raced.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CoordinatorContext } from '../../src/coordinator/context.js';
import { FAILURE_MONITOR_DEFAULTS, FailureMonitor } from '../../src/coordinator/failure-monitor.js';
import { ReachComplaints } from '../../src/coordinator/reach-complaints.js';
import { systemClock } from '../../src/rpc/clock.js';
import { RekindleError } from '../../src/rpc/errors.js';
import { answerHello, PROTOCOL } from '../../src/rpc/handshake.js';
import type { Hello, ProbeOutcome } from '../../src/rpc/messages.js';
import { patience, probe } from '../../src/rpc/probe.js';
import type { LinkPool, RpcLink } from '../../src/rpc/transport.js';
import { until } from './rpc-fixture.js';

type Behaviour = 'alive' | 'refused' | 'silent' | 'breaks';

const HELLO: Hello = {
  ...{ protocol: PROTOCOL, features: [], role: 'coordinator', clusterId: null },
  ...{ serverId: null, expectServerId: null, credential: null },
};

class FakeLink {
  connected: boolean;
  calls = 0;

  constructor(
    readonly behaviour: () => Behaviour,
    readonly witness: (serverId: number) => ProbeOutcome = () => 'unknown',
  ) {
    this.connected = behaviour() === 'alive' || behaviour() === 'silent';
  }

  call = async (
    name: string,
    request: { serverId: number },
    { timeoutMs }: { timeoutMs: number },
  ) => {
    this.calls += 1;
    const behaviour = this.behaviour();
    if (behaviour === 'silent') {
      await new Promise((resolve) => setTimeout(resolve, timeoutMs));
      throw new RekindleError('TIMEOUT', 'no reply');
    }
    await new Promise((resolve) => setImmediate(resolve));
    if (behaviour === 'breaks') throw new RekindleError('CONNECTION_LOST', 'closed');
    if (behaviour === 'refused') {
      const cause = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
      throw new RekindleError('CONNECTION_LOST', 'refused', { cause });
    }
    if (name === 'PROBE_SERVER') return { outcome: this.witness(request.serverId) };
    return { serverListVersion: 1, member: true, lagMs: 0 };
  };
  onLost = (): void => undefined;
}

const asLink = (link: FakeLink): RpcLink => link as unknown as RpcLink;

function target(first: FakeLink, fresh = first) {
  return { link: () => asLink(first), freshLink: () => asLink(fresh) };
}

test('a probe: an answer is life, a refusal death, silence takes its time', async () => {
  const alive = new FakeLink(() => 'alive');
  assert.equal(await probe(target(alive), 5_000), 'alive');
  const refused = new FakeLink(() => 'refused');
  assert.equal(await probe(target(refused), 5_000), 'refused');
  const startMs = performance.now();
  assert.equal(await probe(target(new FakeLink(() => 'silent')), 40), 'silent');
  assert.ok(performance.now() - startMs >= 39);
});

test('a connection that breaks during a probe says nothing: a fresh one is asked', async () => {
  const broken = new FakeLink(() => 'breaks');
  broken.connected = true;
  assert.equal(await probe(target(broken, new FakeLink(() => 'alive')), 5_000), 'alive');
  assert.equal(await probe(target(broken, new FakeLink(() => 'refused')), 5_000), 'refused');
  const startMs = performance.now();
  assert.equal(await probe(target(broken, new FakeLink(() => 'breaks')), 40), 'silent');
  // Timers of Node count whole milliseconds.
  assert.ok(performance.now() - startMs >= 35, 'silence is a time, not a failure');
});

test('a process that still takes connections while it dies is refused a moment later', async () => {
  const broken = new FakeLink(() => 'breaks');
  broken.connected = true;
  let calls = 0;
  const dying = new FakeLink(() => {
    calls += 1;
    return calls < 4 ? 'breaks' : 'refused';
  });
  const startMs = performance.now();
  assert.equal(await probe(target(broken, dying), 5_000), 'refused');
  assert.ok(performance.now() - startMs < 2_500, 'not only at the end of the time');
});

test('a process that has not heard of its id yet is known by its nonce', async () => {
  const startsAs = (nonce: string): FakeLink => {
    const link = new FakeLink(() => 'alive');
    link.call = async () => {
      const identity = { role: 'server', clusterId: null, serverId: null, nonce } as const;
      throw answerHello({ ...HELLO, expectServerId: 7 }, identity, []);
    };
    return link;
  };
  assert.equal(await probe(target(startsAs('mine')), 5_000, 'mine'), 'alive');
  // Another process at the same address; and one who asks without knowing the nonce.
  assert.equal(await probe(target(startsAs('other')), 20, 'mine'), 'silent');
  assert.equal(await probe(target(startsAs('mine')), 20), 'silent');
});

test('patience grows with slowness beyond what is usual, up to two seconds', () => {
  assert.equal(patience(250, 0), 250);
  assert.equal(patience(250, 25), 250);
  assert.equal(patience(250, 75), 450);
  assert.equal(patience(250, 60_000), 2_250);
});

/** A coordinator of servers 1 … n; `toCoordinator` and `toServers`: how each one can be reached. */
class Scene {
  readonly toCoordinator = new Map<number, Behaviour>();
  readonly toServers = new Map<number, ProbeOutcome>();
  readonly crashed: { serverId: number; reason: string }[] = [];
  readonly warnings: string[] = [];
  readonly monitor: FailureMonitor;
  readonly #up: Set<number>;
  readonly #timers = new Set<NodeJS.Timeout>();

  constructor(servers: number) {
    this.#up = new Set(Array.from({ length: servers }, (_, n) => n + 1));
    const entry = (serverId: number) => ({ serverId, address: `h:${serverId}`, status: 'up' });
    const context = {
      state: {
        upServers: () => [...this.#up].map(entry),
        isUp: (serverId: number) => this.#up.has(serverId),
        servers: { get: (id: number) => (this.#up.has(id) ? entry(id) : undefined) },
      },
      now: () => performance.now(),
      clock: systemClock,
      log: (level: string, message: string) => {
        if (level === 'warn') this.warnings.push(message);
      },
      after: (ms: number, action: () => void) => {
        const timer = setTimeout(action, ms);
        this.#timers.add(timer);
        return () => clearTimeout(timer);
      },
      background: (promise: Promise<unknown>) => void promise,
    } as unknown as CoordinatorContext;
    const links = {
      link: (address: string) => {
        const serverId = Number(address.slice(2));
        const behaviour = () => this.toCoordinator.get(serverId) ?? 'alive';
        return asLink(new FakeLink(behaviour, (id) => this.toServers.get(id) ?? 'alive'));
      },
      drop: () => undefined,
      close: () => undefined,
    } as unknown as LinkPool;
    const config = {
      ...FAILURE_MONITOR_DEFAULTS,
      pingTimeoutMs: 30,
      probeTimeoutMs: 30,
      newServerLagMs: 0,
    };
    const onCrashed = (serverId: number, _suspectedAtMs: number, reason: string): void => {
      this.crashed.push({ serverId, reason });
      this.#up.delete(serverId);
      this.monitor.left(serverId);
    };
    this.monitor = new FailureMonitor(context, links, onCrashed, config, {
      ms: () => 0,
      close: () => undefined,
    });
    this.monitor.start();
  }

  stop(): void {
    this.monitor.stop();
    for (const timer of this.#timers) clearTimeout(timer);
  }
}

test('a silent server is pinged, probed, seen by witnesses, declared', async () => {
  const scene = new Scene(5);
  scene.toCoordinator.set(2, 'silent');
  scene.toServers.set(2, 'silent');
  await until('the verdict', () => scene.crashed.length > 0);
  scene.stop();
  assert.deepEqual(scene.crashed, [{ serverId: 2, reason: 'it does not answer' }]);
});

test('a server that only the coordinator cannot reach stays, with a warning', async () => {
  for (const behaviour of ['silent', 'refused'] as const) {
    const scene = new Scene(5);
    scene.toCoordinator.set(2, behaviour);
    await until('a warning', () => scene.monitor.warnings().length > 0);
    scene.stop();
    assert.deepEqual(scene.crashed, []);
    assert.match(
      scene.monitor.warnings()[0] ?? '',
      /^server 2 does not answer the coordinator but/,
    );
  }
});

test('servers that do not reach one another are named once it lasts', () => {
  const complaints = new ReachComplaints();
  const up = (): boolean => true;
  for (let nowMs = 0; nowMs <= 5_000; nowMs += 500) {
    complaints.note(1, 2, nowMs);
    // Late now and then is no complaint.
    if (nowMs % 4_000 === 0) complaints.note(3, 2, nowMs);
  }
  const [warning, ...others] = complaints.warnings(up, 5_000);
  assert.match(warning ?? '', /^server 1 does not reach server 2 \(for 5 s\)/);
  assert.deepEqual(others, []);
  assert.deepEqual(
    complaints.warnings((serverId) => serverId !== 2, 5_000),
    [],
  );
  assert.deepEqual(complaints.warnings(up, 8_000), []);
});

test('a coordinator that reaches nobody declares nobody, with a warning', async () => {
  const scene = new Scene(5);
  for (let serverId = 1; serverId <= 5; serverId += 1) scene.toCoordinator.set(serverId, 'silent');
  await until('a warning of each', () => scene.monitor.warnings().length === 5);
  assert.deepEqual(scene.crashed, []);
  // It is back: all suspicions end by themselves.
  scene.toCoordinator.clear();
  await until('no warning', () => scene.monitor.warnings().length === 0);
  scene.stop();
  assert.deepEqual(scene.crashed, []);
});
