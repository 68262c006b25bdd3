/**
 * A network for a local cluster of which parts can be cut off: a namespace for each process, joined
 * by a bridge (ip, bridge; needs root and Linux). Two isolated ports of the bridge reach everybody
 * but one another.
 *
 * Names carry the process id, and `close` removes all of it.
 */
import { execFileSync } from 'node:child_process';
import { undoAtExit } from '../src/cluster/left-behind.js';
import type { Placement } from '../src/cluster/local-cluster.js';
import { invariant } from '../src/rpc/errors.js';

const SUBNET = '10.213';

function ip(...words: string[]): void {
  execFileSync('ip', words, { stdio: ['ignore', 'ignore', 'pipe'] });
}

export class Network {
  /** Distinguishes networks of several runs on one machine. */
  readonly #id: number;
  readonly #bridge: string;
  readonly #names: string[] = [];
  readonly #noUndo = undoAtExit(() => this.#remove());

  private constructor() {
    this.#id = process.pid % 250;
    this.#bridge = `rkb${process.pid}`;
  }

  /** Null where this machine does not allow it; says why on stderr. */
  static create(names: readonly string[]): Network | null {
    const network = new Network();
    try {
      network.#createAll(names);
      return network;
    } catch (error) {
      process.stderr.write(`no network namespaces here: ${(error as Error).message}\n`);
      network.close();
      return null;
    }
  }

  #createAll(names: readonly string[]): void {
    ip('link', 'add', this.#bridge, 'type', 'bridge');
    ip('addr', 'add', `${this.#address(0)}/24`, 'dev', this.#bridge);
    ip('link', 'set', this.#bridge, 'up');
    for (const name of names) {
      this.#names.push(name);
      const [space, port] = [this.#space(name), this.#port(name)];
      ip('netns', 'add', space);
      ip('link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', space);
      ip('link', 'set', port, 'master', this.#bridge, 'up');
      ip('-n', space, 'addr', 'add', `${this.#address(this.#names.length)}/24`, 'dev', 'eth0');
      ip('-n', space, 'link', 'set', 'eth0', 'up');
      ip('-n', space, 'link', 'set', 'lo', 'up');
    }
  }

  /** For `LocalClusterOptions.placement`. */
  placement(name: string): Placement {
    const index = this.#names.indexOf(name);
    invariant(index >= 0, `${name} has a network`);
    return {
      host: this.#address(index + 1),
      command: ['ip', 'netns', 'exec', this.#space(name)],
    };
  }

  /** Nothing reaches it, and it reaches nothing. */
  cut(name: string): void {
    ip('link', 'set', this.#port(name), 'down');
  }

  join(name: string): void {
    ip('link', 'set', this.#port(name), 'up');
    this.#isolate(name, 'off');
  }

  /** These do not reach one another any more. */
  split(names: readonly string[]): void {
    for (const name of names) this.#isolate(name, 'on');
  }

  close(): void {
    this.#noUndo();
    this.#remove();
  }

  #remove(): void {
    const attempts = [
      // The kernel takes a namespace apart in its own time; a port goes at once.
      ...this.#names.map((name) => ['link', 'del', this.#port(name)]),
      ...this.#names.map((name) => ['netns', 'del', this.#space(name)]),
      ['link', 'del', this.#bridge],
    ];
    for (const words of attempts) {
      try {
        ip(...words);
      } catch (error) {
        // What was never made cannot be removed: the rest still has to be.
        process.stderr.write(`ip ${words.join(' ')}: ${(error as Error).message}\n`);
      }
    }
  }

  #isolate(name: string, how: 'on' | 'off'): void {
    const words = ['link', 'set', 'dev', this.#port(name), 'isolated', how];
    execFileSync('bridge', words, { stdio: ['ignore', 'ignore', 'pipe'] });
  }

  #address(host: number): string {
    return `${SUBNET}.${this.#id}.${host + 1}`;
  }

  #space(name: string): string {
    return `rk-${process.pid}-${name}`;
  }

  /** At most 15 characters. */
  #port(name: string): string {
    return `rk${process.pid}-${this.#names.indexOf(name)}`;
  }
}
