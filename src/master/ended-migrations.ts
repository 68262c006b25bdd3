/** Ids of migrations that are over here, so that a late message starts none again: the newest. */
const endedMax = 1_024;

export class EndedMigrations {
  /** The oldest first. */
  readonly #ids = new Set<number>();

  has(migrationId: number): boolean {
    return this.#ids.has(migrationId);
  }

  add(migrationId: number): void {
    this.#ids.add(migrationId);
    const [oldest] = this.#ids;
    if (this.#ids.size > endedMax && oldest !== undefined) this.#ids.delete(oldest);
  }
}
