/**
 * The leader dies at every step of the catalogue that is a coordinator's, with its state in etcd,
 * and a standby finishes what was begun: the dead one is not started again before the cluster is
 * whole. Chosen as in fault-points.test.ts.
 */
import { test } from 'node:test';
import { withoutEtcd } from '../../bench/etcd.js';
import { LEADER_CRASHES } from './catalogue.js';
import { chosenOf, lanes, play } from './play.js';

const options = { skip: withoutEtcd, concurrency: lanes };

test('a standby finishes what a leader has begun', options, (t) =>
  play(t, chosenOf(LEADER_CRASHES), { standby: true }),
);
