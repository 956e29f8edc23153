// Another sample rate by linear interpolation: enough for speech that was band-limited before.

/** `samples` at `from` a second as samples at `to` a second. */
export function resample(samples, from, to) {
  if (from === to) return samples;
  const length = Math.round((samples.length * to) / from);
  const result = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    const place = (i * from) / to;
    const left = Math.min(Math.floor(place), samples.length - 1);
    const right = Math.min(left + 1, samples.length - 1);
    result[i] = samples[left] + (samples[right] - samples[left]) * (place - left);
  }
  return result;
}
