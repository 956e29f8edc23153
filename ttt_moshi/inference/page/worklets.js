// In the audio thread: frames out of the microphone, and frames to the speaker.

/** Posts float frames of `frameSize` samples. */
class Recorder extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.frame = new Float32Array(options.processorOptions.frameSize);
    this.filled = 0;
  }

  process(inputs) {
    const samples = inputs[0][0];
    if (!samples) return true;
    for (let at = 0; at < samples.length; ) {
      const count = Math.min(samples.length - at, this.frame.length - this.filled);
      this.frame.set(samples.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === this.frame.length) {
        this.port.postMessage(this.frame.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

/** Plays what it is sent. Waits for `start` samples before it begins, and lets go what is more than `most`. */
class Player extends AudioWorkletProcessor {
  constructor(options) {
    super();
    const { start, most } = options.processorOptions;
    this.start = start;
    this.most = most;
    this.queue = [];
    this.waiting = 0;
    this.offset = 0;
    this.playing = false;
    this.sinceReport = 0;
    this.port.onmessage = ({ data }) => {
      if (data === null) {
        this.queue = [];
        this.waiting = this.offset = 0;
        this.playing = false;
        return;
      }
      this.queue.push(data);
      this.waiting += data.length;
      while (this.waiting > this.most && this.queue.length > 1) {
        this.waiting -= this.queue.shift().length - this.offset;
        this.offset = 0;
      }
    };
  }

  process(_, outputs) {
    const output = outputs[0][0];
    if (this.waiting >= this.start) this.playing = true;
    let at = 0;
    while (this.playing && at < output.length && this.queue.length) {
      const first = this.queue[0];
      const count = Math.min(output.length - at, first.length - this.offset);
      output.set(first.subarray(this.offset, this.offset + count), at);
      at += count;
      this.offset += count;
      this.waiting -= count;
      if (this.offset === first.length) {
        this.queue.shift();
        this.offset = 0;
      }
    }
    if (at < output.length) this.playing = false;
    this.sinceReport += output.length;
    if (this.sinceReport >= sampleRate / 10) {
      this.sinceReport = 0;
      this.port.postMessage(this.waiting / sampleRate);
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
registerProcessor("player", Player);
