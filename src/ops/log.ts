/**
 * Logs of the server processes: JSON lines, or pretty on a terminal. One line an event with the
 * facts as fields; nothing is logged once per request. Writes to stderr, stdout belongs to the
 * command.
 */
import { pino } from 'pino';
import pretty from 'pino-pretty';

export type LogFields = Record<string, unknown>;

/** What the parts of a server see of the log; tests pass their own. */
export interface Log {
  debug(fields: LogFields, message: string): void;
  info(fields: LogFields, message: string): void;
  warn(fields: LogFields, message: string): void;
  error(fields: LogFields, message: string): void;
  /** The same log with fields that every line repeats. */
  with(fields: LogFields): Log;
}

export interface LogOptions {
  level?: 'debug' | 'info' | 'warn' | 'error' | 'silent';
  /** Default: pretty if stderr is a terminal. */
  format?: 'json' | 'pretty';
}

type Pino = ReturnType<typeof pino>;

function wrap(logger: Pino): Log {
  return {
    debug: (fields, message) => logger.debug(fields, message),
    info: (fields, message) => logger.info(fields, message),
    warn: (fields, message) => logger.warn(fields, message),
    error: (fields, message) => logger.error(fields, message),
    with: (fields) => wrap(logger.child(fields)),
  };
}

export function createLog(options: LogOptions = {}): Log {
  const format = options.format ?? (process.stderr.isTTY === true ? 'pretty' : 'json');
  // Synchronous in both forms: the lines before an exit are the ones that matter most.
  const destination =
    format === 'pretty'
      ? pretty({ destination: 2, sync: true, ignore: 'pid,hostname' })
      : pino.destination({ dest: 2, sync: true });
  return wrap(pino({ level: options.level ?? 'info', base: null }, destination));
}
