/** A rejection by the server, or the end of a watch that cannot go on. */
export class TidingsError extends Error {
  override readonly name = "TidingsError";
  /** The HTTP status of a rejection. */
  readonly status: number | undefined;
  /** The `code` of a problem, such as `not-found`, or of a close, such as 1008. */
  readonly code: string | number | undefined;
  /** How long the server asks to wait before the next try, in milliseconds. */
  readonly retryMs: number;

  constructor(message: string, status?: number, code?: string | number, retryMs = 0) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryMs = retryMs;
  }
}

/** Returns the error that a response describes. */
export async function rejection(response: Response): Promise<TidingsError> {
  const problem = await response.json().catch(() => ({}));
  const after = Number(response.headers.get("Retry-After"));
  return new TidingsError(problem?.detail ?? `HTTP ${response.status}`, response.status, problem?.code, after * 1000 || 0);
}

/** The longest time that a timer can wait. With a longer one it fires at once. */
const TIMER_MAX_MS = 2 ** 31 - 1;

/** Waits, at most until the signal is aborted. */
export const sleep = (ms: number, signal: AbortSignal) =>
  new Promise<void>((done) => {
    const wake = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", wake);
      done();
    };
    const timer = setTimeout(wake, Math.min(ms, TIMER_MAX_MS));
    signal.addEventListener("abort", wake);
    if (signal.aborted || ms <= 0) wake();
  });
