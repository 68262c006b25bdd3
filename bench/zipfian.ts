/**
 * Numbers drawn by Zipf's law: rank r comes up in proportion to 1 / (r + 1)^theta. The method is
 * that of Gray et al., "Quickly Generating Billion-Record Synthetic Databases" (SIGMOD 1994), as in
 * YCSB: constant time for each number, after one sum over all ranks.
 *
 * The first two ranks are exact. Those behind them follow a curve through them, which gives the
 * next few some percent too much or too little; sums over many ranks are right.
 */
import { invariant } from '../src/rpc/errors.js';
import { randomStream } from './dataset.js';

export class Zipfian {
  readonly #theta: number;
  #count = 0;
  /** The sum of 1 / i^theta for i from 1 to #count. */
  #zeta = 0;
  #eta = 0;

  constructor(count: number, theta = 0.99) {
    invariant(theta > 0 && theta < 1, 'theta is between 0 and 1');
    this.#theta = theta;
    this.growTo(count);
  }

  /** The same law over more ranks; only those that are new are added up. */
  growTo(count: number): void {
    invariant(count >= 3 && count >= this.#count, 'two ranks are exact, more follow the curve');
    for (let i = this.#count + 1; i <= count; i++) this.#zeta += 1 / i ** this.#theta;
    this.#count = count;
    const zetaOfTwo = 1 + 0.5 ** this.#theta;
    this.#eta = (1 - (2 / count) ** (1 - this.#theta)) / (1 - zetaOfTwo / this.#zeta);
  }

  /** From a number in [0, 1) to a rank in [0, count); 0 is drawn most. */
  rank(uniform: number): number {
    const scaled = uniform * this.#zeta;
    if (scaled < 1) return 0;
    if (scaled < 1 + 0.5 ** this.#theta) return 1;
    const curve = (this.#eta * uniform - this.#eta + 1) ** (1 / (1 - this.#theta));
    return Math.min(this.#count - 1, Math.floor(this.#count * curve));
  }
}

/** [0, count) in an order that follows from the seed: spreads popular ranks over all keys. */
export function shuffled(count: number, seed: number): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, index) => index);
  const random = randomStream(seed);
  for (let last = count - 1; last > 0; last--) {
    const other = random() % (last + 1);
    const kept = order[last] as number;
    order[last] = order[other] as number;
    order[other] = kept;
  }
  return order;
}
