/** What perf prints is taken apart, and each sample has its place. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { placeOf, readSamples, type Sample, scriptsOf } from '../../bench/perf-samples.js';

const PRINTED = `node  3119/3119  
\tffffffff813a2413 finish_task_switch.isra.0 ([kernel.kallsyms])
\tffffffff821f8914 tcp_sendmsg ([kernel.kallsyms])
\tffffffff81000130 entry_SYSCALL_64_after_hwframe ([kernel.kallsyms])
\t          10aba4 __send (/usr/lib/libc.so.6)
\t    7f93fc2aa8fc JS:*#flush file:///a/build/src/master/runtime.js:228:11 (/tmp/perf-9.map)
\t    7f93fc2a6b28 JS:* file:///a/build/src/master/runtime.js:143:22 (/tmp/perf-9.map)
\t    7f93fc286be2 JS:*processImmediate node:internal/timers:438:28 (/tmp/perf-3119.map)

backup-io  3119/3171  
\tffffffff813a2413 io_submit ([kernel.kallsyms])

V8 Worker  3119/3120  
\t          14c46ff v8::internal::Scavenger::Process (/usr/bin/node (deleted))
`;

async function* lines(text: string): AsyncGenerator<string> {
  yield* text.split('\n');
}

async function read(text: string): Promise<Sample[]> {
  const samples: Sample[] = [];
  for await (const sample of readSamples(lines(text))) samples.push(sample);
  return samples;
}

function placed(frames: readonly [symbol: string, object: string][], thread = 'node'): string {
  const named = frames.map(([symbol, object]) => ({ symbol, object }));
  return placeOf({ pid: 1, tid: 1, thread, frames: named });
}

describe('perf-samples', () => {
  test('samples, with their threads and frames', async () => {
    const samples = await read(PRINTED);
    assert.deepEqual(
      samples.map(({ pid, tid, thread, frames }) => [pid, tid, thread, frames.length]),
      [
        [3119, 3119, 'node', 7],
        [3119, 3171, 'backup-io', 1],
        [3119, 3120, 'V8 Worker', 1],
      ],
    );
    assert.deepEqual(samples[2]?.frames[0], {
      symbol: 'v8::internal::Scavenger::Process',
      object: '/usr/bin/node',
    });
    assert.deepEqual(samples.map(placeOf), [
      'kernel: sending',
      'thread backup-io, kernel',
      'thread V8 Worker, own code',
    ]);
    assert.deepEqual(
      samples.map(scriptsOf).map((names) => [...names]),
      [['#flush src/master/runtime.js:228', '(anonymous) src/master/runtime.js:143'], [], []],
    );
    assert.deepEqual(await read('no sample\n\n\tffff x (y)\n'), []);
  });

  test('the innermost frame that says something decides', () => {
    const script = ['JS:*execute file:///a/build/src/master/x.js:1:2', '/tmp/perf-1.map'] as const;
    const memmove = ['__memmove', '/usr/lib/libc.so.6'] as const;
    const core = ['rekindle_core::execute', '/a/rekindle.linux-x64-gnu.node'] as const;
    const uws = ['uWS::send', '/a/uws_linux_x64_115.node'] as const;
    const timers = ['JS:*list node:internal/timers:5:9', '/tmp/perf-1.map'] as const;
    assert.equal(placed([[...memmove], [...core], [...script]]), 'native core');
    assert.equal(placed([[...memmove], [...script], [...uws]]), 'JavaScript of Rekindle');
    assert.equal(placed([[...memmove], [...uws]]), 'uWebSockets.js');
    assert.equal(placed([['Builtins_LoadIC', '/usr/bin/node'], [...timers]]), 'JavaScript of Node');
    assert.equal(placed([['uv__io_poll', '/usr/bin/node']]), 'Node, libuv, V8');
    const scavenge = ['v8::internal::Heap::Scavenge', '/usr/bin/node'] as const;
    assert.equal(placed([[...memmove], [...scavenge], [...script]]), 'garbage collection');
    const poll = ['do_epoll_wait', '[kernel.kallsyms]'] as const;
    assert.equal(
      placed([['schedule', '[kernel.kallsyms]'], [...poll]]),
      'kernel: waiting for events',
    );
    assert.equal(placed([['schedule', '[kernel.kallsyms]']]), 'kernel: other');
  });
});
