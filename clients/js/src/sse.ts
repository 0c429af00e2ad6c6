/**
 * Parses Server-Sent Events, in whatever pieces they arrive. `take` gets the data of each event.
 *
 * Every message carries its own type and cursor, so the fields `event`, `id` and `retry` are not needed.
 */
export function parser(take: (data: string) => void): (piece: string) => void {
  let rest = "";
  let data: string[] = [];
  let half = false;
  return (piece) => {
    // A long line is looked at once, not again with each of its pieces.
    if (!half && !/[\r\n]/.test(piece)) {
      rest += piece;
      return;
    }
    // A CR at the end may be half of a CRLF: it waits for the next piece.
    const lines = (rest + piece).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() as string;
    half = rest.endsWith("\r");
    for (const line of lines) {
      if (!line) {
        if (data.length) take(data.join("\n"));
        data = [];
      } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  };
}
