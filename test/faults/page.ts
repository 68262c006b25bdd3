/**
 * docs/faults.md, made of the catalogue. `node build/test/faults/write-page.js` writes it; a test
 * (test/tidy/fault-table.test.ts) fails when it is stale, or when the catalogue lacks a fault point
 * of the code or an RPC.
 */
import { CASES, CATALOGUE, EXEMPT, type Row } from './catalogue.js';

const TITLES: Record<Row['page'], string> = {
  replication: 'Replication and cleaning',
  recovery: 'Recovery',
  coordinator: 'The coordinator',
  migration: 'Migration of a tablet',
  drain: 'Drain of a server',
};

const OPENING = `# Faults

Every step of every protocol at which a fault can be injected, and what must come of it.
This page is made of the code (\`test/faults/catalogue.ts\`) by
\`node build/test/faults/write-page.js\`; a test fails when it is stale,
and when a fault point or an RPC of the code has no row.

\`\`\`sh
npm run test:faults                                     # all of it, with real processes
REKINDLE_FAULT_CASES=recover-plan npm run test:faults   # the cases whose name contains a word
\`\`\`

\`test/faults/fault-points.test.ts\` plays each row with each of its faults: on a cluster of five
servers with R = 3 under load it arms a running process, brings it to the step, and sees that the
fault strikes there. Then it starts again what has ended. **In every case** no acknowledged write
may be missing, no read may have been stale, no value torn (\`bench/chaos-checker.ts\`), the cluster
must be whole within a minute, and no process may have ended but those that the row lets end. The
last column says what else is expected. \`npm test\` plays a few of them.

Each row of the coordinator is played twice where the kind is \`crash\`: the leader is started again
on its LMDB folder, and with its state in etcd a standby goes on (\`standby-points.test.ts\`).
\`REKINDLE_FAULT_SLICE=2/9\` plays every ninth case, beginning with the third.

## Kinds

\`REKINDLE_FAULT="recover-plan-2=crash,request-RECOVER=drop*2"\` arms a process at its start,
\`REKINDLE_FAULT_FILE\` names a file that is read again whenever it changes. \`*2\`: strikes twice.

| kind | at a step | at a message |
|---|---|---|
| \`crash\` | SIGKILL | SIGKILL |
| \`error:CODE\` | it fails so (DISK_ERROR) | answered with this error, a request unhandled |
| \`delay:MS\` | it takes so much longer | it comes so much later |
| \`drop\` | what it waited for never came | it is lost |
| \`close\` | | it is lost, and its connection too |
| \`corrupt\` | | its last byte is wrong |

A step is named as in the pages of the protocols, a message \`request-RPC\` before it is handled and
\`reply-RPC\` when it has been: together they are each call at each of its ends. Of the cleaner's
steps only crash and delay exist: what fails there is a call to a backup, and those have rows.
Steps \`disk-…\` are those of the disk layer (below): EIO, or ENOSPC where a file grows.
★: the commit point is passed. "ends" behind a kind: the process stops itself, and is started again
(a coordinator that cannot commit no longer knows what is true).
`;

const CLOSING = `## Disks

The disk layer (\`native/power-loss\`, below) makes the disk of one process slow, full or broken
while it runs: \`rekindle bench faults\` draws these faults too.

## Power loss

\`rekindle bench cold-start --power-loss\` puts that layer under coordinator and servers by
LD_PRELOAD. It writes everything through and keeps, for each block of each file, what it held before
the writes that are not flushed; \`bench/power-cut.ts\` then makes of the files of killed processes
what a power cut might have left: each unflushed 4-KiB block kept, dropped or torn at 512 bytes,
names that were not flushed undone. The page cache survives a kill, so a kill alone says nothing
about fdatasync. \`test/faults/power-loss.test.ts\` shows that the layer sees every write, that
\`fsync\` loses nothing, and that the same run fails when the flush of replicas does nothing
(\`--flush-ignored\`).

What it assumes: a sector of 512 bytes is written whole or not at all; an fsync of a new file makes
its name durable too (ext4, xfs, btrfs), a rename needs an fsync of its folder. Reordering of what
is not flushed is covered, since each block has its own fate; a disk that lies about flushes is not.

## Random schedules

\`rekindle bench faults --schedules 200\` draws faults of all sorts against one running load after
the other, prints the seed of each, and \`--seed N --schedules 1\` repeats one
([operations.md](operations.md)).
`;

function kinds({ faults, ends }: Row): string {
  return faults
    .map((fault) => {
      const ending = ends.some((kind) => fault.split(':')[0] === kind);
      return `${fault}${ending ? ' (ends)' : ''}`;
    })
    .join(', ');
}

function testOf({ elsewhere }: Row): string {
  return (elsewhere ?? 'test/faults/fault-points.test.ts').replace(/^test\/|\.test\.ts$/g, '');
}

function table(page: Row['page']): string {
  const rows = CATALOGUE.filter((row) => row.page === page).map((row) =>
    [
      '',
      row.step,
      `\`${row.name}\``,
      row.at,
      row.what,
      kinds(row),
      row.outcome,
      testOf(row),
      '',
    ].join(' | '),
  );
  return [
    `## ${TITLES[page]} ([${page}.md](${page}.md))`,
    '',
    '| step | fault point | at | passed when | faults | expected | test |',
    '|---|---|---|---|---|---|---|',
    ...rows.map((row) => row.trim()),
    '',
  ].join('\n');
}

export function page(): string {
  const exempt = Object.entries(EXEMPT).map(([name, why]) => `- \`${name}\`: ${why}`);
  return [
    OPENING,
    `${CATALOGUE.length} fault points, ${CASES.length} cases.\n`,
    table('replication'),
    table('recovery'),
    table('coordinator'),
    table('migration'),
    table('drain'),
    `RPCs without rows:\n\n${exempt.join('\n')}\n`,
    CLOSING,
  ].join('\n');
}
