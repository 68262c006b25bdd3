/**
 * The whole of the SDK's daily use in one page. Needs a cluster: `npx rekindle dev`. Run with
 *
 *   node examples/quick-start.mjs [rekindle://host:port]
 */
import { connect, RekindleError } from 'rekindle';

const client = await connect(process.argv[2] ?? 'rekindle://127.0.0.1:7411');
const notes = await client.createTable('notes', { span: 4 });

// Keys and values are bytes; strings are taken as UTF-8.
const { version } = await notes.put('hello', 'world');
const entry = await notes.getEntry('hello');
console.log(Buffer.from(entry.value).toString(), entry.version === version);

// Many at once: one message to each server, results aligned with the keys.
await notes.putMany(Array.from({ length: 1000 }, (_, i) => [`note:${i}`, `text ${i}`]));
const found = await notes.getMany(['note:1', 'note:999', 'note:1000']);
console.log(found.map((value) => value && Buffer.from(value).toString()));

// Every error has a code, says whether to try again, and what became of a write.
try {
  await client.table('nowhere').put('key', 'value', { timeoutMs: 2_000 });
} catch (error) {
  if (!(error instanceof RekindleError)) throw error;
  console.log(error.code, error.retryable, error.outcome);
}

await notes.delete('hello');
await client.close();
