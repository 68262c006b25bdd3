/**
 * Which servers keep saying that they do not reach one another: what is left of a divided network
 * when the coordinator reaches them all. Nobody is declared crashed for that, so an operator has to
 * hear of it. Pure; only hints that servers repeat count, since a busy one is late now and then.
 */

/** A complaint that is not repeated within this time is over. */
const PAUSE_MS_MAX = 3_000;
/** A complaint younger than this is no news. */
const LASTS_MS_MIN = 3_000;

interface Complaint {
  from: number;
  about: number;
  sinceMs: number;
  lastMs: number;
}

export class ReachComplaints {
  /** At most one for each pair of servers. */
  #complaints: Complaint[] = [];

  note(from: number, about: number, nowMs: number): void {
    this.#forget(nowMs);
    const known = this.#complaints.find((each) => each.from === from && each.about === about);
    if (known !== undefined) known.lastMs = nowMs;
    else this.#complaints.push({ from, about, sinceMs: nowMs, lastMs: nowMs });
  }

  /** Of servers that are up, for `status`. */
  warnings(isUp: (serverId: number) => boolean, nowMs: number): string[] {
    this.#forget(nowMs);
    return this.#complaints
      .filter(({ sinceMs, from, about }) => {
        return nowMs - sinceMs >= LASTS_MS_MIN && isUp(from) && isUp(about);
      })
      .map(({ from, about, sinceMs }) => {
        const seconds = Math.round((nowMs - sinceMs) / 1_000);
        return (
          `server ${from} does not reach server ${about} (for ${seconds} s): ` +
          'writes that need both wait; is the network divided?'
        );
      });
  }

  #forget(nowMs: number): void {
    this.#complaints = this.#complaints.filter(({ lastMs }) => nowMs - lastMs < PAUSE_MS_MAX);
  }
}
