// What was heard and said, kept in this page for downloads.

import { toInt16 } from "./codecs.js";

const MOST_SECONDS = 1800;

/** One side of a conversation as pieces of 16-bit samples; the oldest go first. */
class Track {
  #pieces = [];
  length = 0;

  constructor(most) {
    this.most = most;
  }

  add(samples) {
    this.#pieces.push(toInt16(samples));
    this.length += samples.length;
    while (this.length > this.most) this.length -= this.#pieces.shift().length;
  }

  whole() {
    const whole = new Int16Array(this.length);
    let at = 0;
    for (const piece of this.#pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    return whole;
  }
}

export class Recording {
  constructor(rate) {
    this.rate = rate;
    this.moshi = new Track(MOST_SECONDS * rate);
    this.user = new Track(MOST_SECONDS * rate);
  }

  /** A stereo wav file: Moshi left, the user right. */
  wav() {
    const [left, right] = [this.moshi.whole(), this.user.whole()];
    const frames = Math.max(left.length, right.length);
    const file = new DataView(new ArrayBuffer(44 + 4 * frames));
    const text = (at, word) => [...word].forEach((letter, i) => file.setUint8(at + i, letter.charCodeAt(0)));
    text(0, "RIFF");
    file.setUint32(4, 36 + 4 * frames, true);
    text(8, "WAVEfmt ");
    file.setUint32(16, 16, true);
    file.setUint16(20, 1, true);
    file.setUint16(22, 2, true);
    file.setUint32(24, this.rate, true);
    file.setUint32(28, 4 * this.rate, true);
    file.setUint16(32, 4, true);
    file.setUint16(34, 16, true);
    text(36, "data");
    file.setUint32(40, 4 * frames, true);
    for (let i = 0; i < frames; i++) {
      file.setInt16(44 + 4 * i, left[i] ?? 0, true);
      file.setInt16(46 + 4 * i, right[i] ?? 0, true);
    }
    return new Blob([file.buffer], { type: "audio/wav" });
  }
}

/** Offers a blob as a download. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
