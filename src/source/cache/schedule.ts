// SPDX-License-Identifier: Apache-2.0
/**
 * Who may fetch next: so many requests at once, and of one blob only a part
 * of them, so that one that hangs does not stop the others.
 *
 * @module
 */

/** Runs work in turn. */
export interface Scheduler {
  /**
   * Runs `work` when there is room; each `key` has its turn.
   *
   * @throws what `work` throws, or the reason of `signal` while it waits
   */
  run<T>(key: object, signal: AbortSignal, work: () => Promise<T>): Promise<T>;
  /** true when work of this key would begin at once, and leave room */
  idle(key: object): boolean;
}

interface Job {
  key: object;
  start: () => void;
}

/**
 * Makes a scheduler.
 *
 * @param most at once, over all keys
 * @param share of one key at most
 */
export function createScheduler(most: number, share: number): Scheduler {
  // In the order of turns: whose work has begun goes to the end.
  const waiting = new Map<object, Job[]>();
  const running = new Map<object, number>();
  let total = 0;

  const runningOf = (key: object) => running.get(key) ?? 0;
  const next = (): Job | undefined => {
    for (const [key, jobs] of waiting) {
      if (runningOf(key) >= share) continue;
      const job = jobs.shift();
      waiting.delete(key);
      if (jobs.length > 0) waiting.set(key, jobs);
      return job;
    }
    return undefined;
  };
  const startMore = () => {
    while (total < most) {
      const job = next();
      if (job === undefined) return;
      total++;
      running.set(job.key, runningOf(job.key) + 1);
      job.start();
    }
  };
  const end = (key: object) => {
    total--;
    const left = runningOf(key) - 1;
    if (left > 0) running.set(key, left);
    else running.delete(key);
    startMore();
  };
  const turn = (key: object, signal: AbortSignal) =>
    new Promise<void>((start, fail) => {
      const job: Job = {
        key,
        start: () => {
          signal.removeEventListener("abort", leave);
          start();
        },
      };
      const leave = () => {
        const jobs = waiting.get(key)?.filter((other) => other !== job) ?? [];
        if (jobs.length > 0) waiting.set(key, jobs);
        else waiting.delete(key);
        fail(signal.reason);
      };
      if (signal.aborted) return fail(signal.reason);
      signal.addEventListener("abort", leave, { once: true });
      const jobs = waiting.get(key);
      if (jobs === undefined) waiting.set(key, [job]);
      else jobs.push(job);
      startMore();
    });

  return {
    async run(key, signal, work) {
      if (waiting.size > 0 || total >= most || runningOf(key) >= share) {
        await turn(key, signal);
      } else {
        signal.throwIfAborted();
        total++;
        running.set(key, runningOf(key) + 1);
      }
      try {
        return await work();
      } finally {
        end(key);
      }
    },
    idle: (key) => total < most / 2 && runningOf(key) < share / 2,
  };
}
