/**
 * One change of a table's cuts at a time: a merge tells owners which tablets the map has, also when
 * it changes nothing, so it must not come between a split's question and its commit.
 */
export class TableTurns {
  /** By name: ends when the last one in the queue ends. */
  readonly #last = new Map<string, Promise<void>>();

  async run<T>(name: string, change: () => Promise<T>): Promise<T> {
    const before = this.#last.get(name) ?? Promise.resolve();
    const changed = before.then(change);
    const ended = changed.then(
      () => undefined,
      () => undefined,
    );
    this.#last.set(name, ended);
    try {
      return await changed;
    } finally {
      if (this.#last.get(name) === ended) this.#last.delete(name);
    }
  }
}
