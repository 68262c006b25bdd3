/**
 * Loads the native addon and turns its errors into `RekindleError`s. The only importer of the
 * addon; everybody else sees `contract.ts`.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import { statusCode } from '../rpc/status.js';
import type { Addon } from './contract.js';

const require = createRequire(import.meta.url);
let loaded: Addon | null = null;

function platformTriple(): string {
  const libc = process.platform === 'linux' ? '-gnu' : '';
  return `${process.platform}-${process.arch}${libc}`;
}

/** Where the addon may lie: REKINDLE_ADDON, else `build/native` of this package. */
function addonPaths(): string[] {
  const fromEnvironment = process.env.REKINDLE_ADDON;
  if (fromEnvironment !== undefined) return [path.resolve(fromEnvironment)];
  const folder = path.dirname(fileURLToPath(import.meta.url));
  const file = `rekindle.${platformTriple()}.node`;
  // From build/src/native and from a compiled tree elsewhere inside the package.
  return [
    path.resolve(folder, '../../native', file),
    path.resolve(folder, '../../build/native', file),
  ];
}

/** The addon; throws with what to do if it is not built. */
export function loadAddon(): Addon {
  if (loaded !== null) return loaded;
  const paths = addonPaths();
  const found = paths.find((file) => existsSync(file));
  if (found === undefined) {
    throw new RekindleError(
      'INTERNAL',
      `native addon not found (${paths.join(', ')}): run npm run build:native`,
    );
  }
  loaded = require(found) as Addon;
  return loaded;
}

/** The native core throws `Error`s whose `code` is a decimal status number (contract.ts). */
export function asNativeError(thrown: unknown): RekindleError {
  if (thrown instanceof RekindleError) return thrown;
  const code = (thrown as { code?: unknown } | null)?.code;
  if (thrown instanceof Error && typeof code === 'string' && /^\d+$/.test(code)) {
    return new RekindleError(statusCode(Number(code)), thrown.message, { cause: thrown });
  }
  return asRekindleError(thrown);
}
