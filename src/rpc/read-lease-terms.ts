/**
 * The terms of read leases, which masters, backups and the coordinator must agree on
 * (docs/leases.md). A grant is worth `readLeaseMs` to whoever gave it, counted from the answer, and
 * `readLeaseMarginMs` less to the master, counted from its request: so the master's end comes first
 * although neither knows the other's clock, as long as both run within 1.5 % of true time.
 */

export const readLeaseMs = 300;
export const readLeaseMarginMs = 10;
/** Age of a grant at which the master asks for another one. */
export const readLeaseRenewMs = 100;
