// SPDX-License-Identifier: Apache-2.0

/**
 * An image cannot be opened.  `resultText` is what the result file says
 * behind `failed:` (spec/image.md, section 4).
 */
export class ImageError extends Error {
  override readonly name = "ImageError";
  readonly resultText: string;

  constructor(message: string, resultText = message, options?: ErrorOptions) {
    super(message, options);
    this.resultText = resultText;
  }
}
