// The microphone and the speaker, as frames of samples at the model's rate.

import { resample } from "./resample.js";

const START_SECONDS = 0.12;
const MOST_SECONDS = 0.6;

/** Why there is no microphone, in words that help; `error` is what the browser says. */
export function microphoneProblem(error) {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    return "Browsers give the microphone only to pages on https or localhost: start the server with --ssl, or open it on its own machine.";
  }
  if (error?.name === "NotAllowedError") {
    return "The microphone was refused: allow it for this page (the icon beside the address), then start again.";
  }
  if (error?.name === "NotFoundError") return "There is no microphone: plug one in, then start again.";
  if (error?.name === "NotReadableError") return "The microphone is used by another program: end it, then start again.";
  return `The microphone cannot be used: ${error?.message ?? "unknown reason"}`;
}

export class Audio {
  /** Opens both. `onFrame` gets float frames of `frameSize` samples, `onBuffered` the seconds that wait to be played. */
  static async open(rate, frameSize, onFrame, onBuffered) {
    if (!window.isSecureContext || !navigator.mediaDevices) throw new Error("insecure");
    const microphone = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
    let context = new AudioContext({ sampleRate: rate });
    let source;
    try {
      source = context.createMediaStreamSource(microphone);
    } catch {
      // Some browsers do not bring a microphone to another rate than its own.
      await context.close();
      context = new AudioContext();
      source = context.createMediaStreamSource(microphone);
    }
    await context.audioWorklet.addModule("worklets.js");
    return new Audio(context, source, microphone, rate, frameSize, onFrame, onBuffered);
  }

  constructor(context, source, microphone, rate, frameSize, onFrame, onBuffered) {
    this.context = context;
    this.microphone = microphone;
    this.rate = rate;
    const own = context.sampleRate;
    const recorder = new AudioWorkletNode(context, "recorder", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { frameSize: Math.round((frameSize * own) / rate) },
    });
    recorder.port.onmessage = ({ data }) => onFrame(resample(data, own, rate));
    source.connect(recorder);
    this.player = new AudioWorkletNode(context, "player", {
      numberOfInputs: 0,
      outputChannelCount: [1],
      processorOptions: { start: START_SECONDS * own, most: MOST_SECONDS * own },
    });
    this.player.port.onmessage = ({ data }) => onBuffered(data);
    this.player.connect(context.destination);
    context.resume();
  }

  play(samples) {
    this.player.port.postMessage(resample(samples, this.rate, this.context.sampleRate));
  }

  /** Forgets what has not been played. */
  hush() {
    this.player.port.postMessage(null);
  }

  close() {
    for (const track of this.microphone.getTracks()) track.stop();
    this.context.close();
  }
}

/** Loudness of samples for a meter, 0 to 1: from -60 dB to full scale. */
export function level(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.max(0, 1 + Math.log10(Math.sqrt(sum / samples.length) + 1e-9) / 3);
}
