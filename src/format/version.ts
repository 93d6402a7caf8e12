// SPDX-License-Identifier: Apache-2.0
/** Of the whole project: the executable has no other place that says it. */
export const VERSION = "0.1.0";
