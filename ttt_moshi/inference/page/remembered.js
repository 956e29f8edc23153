// Which conversations this browser can go on with: names for ids that only it knows.

const KEY = "ttt-moshi conversations";

/** [{ name, session, saved }], the newest first. */
export function remembered() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

/** Adds a conversation, or gives one another name and time. */
export function remember(name, session) {
  const others = remembered().filter((one) => one.session !== session);
  localStorage.setItem(KEY, JSON.stringify([{ name, session, saved: Date.now() }, ...others]));
}

/** Takes a conversation off the list. */
export function unremember(session) {
  localStorage.setItem(KEY, JSON.stringify(remembered().filter((one) => one.session !== session)));
}
