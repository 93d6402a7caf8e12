// SPDX-License-Identifier: Apache-2.0
/**
 * What `ctl` can do, and the words that each action needs and may take.
 *
 * @module
 */

/** Words behind an action. */
export interface Words {
  needs: readonly string[];
  takes: readonly string[];
  /** any number of the last one */
  many?: boolean;
}

const NONE: Words = { needs: [], takes: [] };

export const CTL_ACTIONS = {
  devices: NONE,
  device: { needs: ["DEVICE"], takes: [] },
  attach: { needs: ["CONFIG[;dev_id]"], takes: [] },
  detach: { needs: ["DEVICE"], takes: [] },
  flush: { needs: ["DEVICE"], takes: [] },
  resize: { needs: ["DEVICE", "SIZE"], takes: [] },
  snapshot: { needs: ["DEVICE", "NEW_CONFIG"], takes: [] },
  images: NONE,
  cache: {
    needs: [],
    takes: ["ls|pins|pin|unpin|verify|prune", "BYTES|BLOB..."],
    many: true,
  },
  pull: { needs: ["CONFIG"], takes: [] },
  pulls: NONE,
  cancel: { needs: ["PULL"], takes: [] },
  downloads: NONE,
  prefetches: NONE,
  config: { needs: [], takes: ["reload"] },
  "log-level": { needs: [], takes: ["LEVEL"] },
  health: NONE,
  version: NONE,
} as const satisfies Record<string, Words>;

/** One of them. */
export type CtlAction = keyof typeof CTL_ACTIONS;
