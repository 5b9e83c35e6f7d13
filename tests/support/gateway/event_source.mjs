// Follows a stream with the npm package `eventsource`, and tells of each thing that happens.
// Arguments: the stream's URL, a bearer token.
import { EventSource } from "eventsource";

const [url, token] = process.argv.slice(2);
const say = (what) => console.log(JSON.stringify(what));

const source = new EventSource(url, {
  fetch: (input, init) =>
    fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } }),
});
source.onopen = () => say({ open: true });
source.onmessage = ({ lastEventId, data }) => say({ id: lastEventId, data: JSON.parse(data) });
source.onerror = ({ code }) => say({ error: code ?? null, state: source.readyState });
