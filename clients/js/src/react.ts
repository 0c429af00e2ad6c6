/** A React hook for the present state of a scope. */
import { type DetailedHTMLProps, type HTMLAttributes, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import type { TidingsJobs, TidingsProgress } from "./elements.js";
import type { Secret } from "./link.js";
import { type Snapshot, type Watch, type WatchOptions, watch } from "./watch.js";

export type { Snapshot, WatchOptions } from "./watch.js";

const NOTHING: Snapshot = {
  status: "connecting",
  ready: false,
  subjects: new Map(),
  cursor: "",
  transport: undefined,
  error: undefined,
};

/**
 * Returns the present state of a scope, and renders again when it changes. Null as the scope: nothing is watched.
 *
 * A new connection follows a change of the scope, `server`, `query`, `identity` or `transports`; functions may be new at each render.
 */
export function useTidings(scope: string | readonly string[] | null, options: WatchOptions = {}): Snapshot {
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
  });
  const { server, query, identity, transports, share, persist } = options;
  const name = JSON.stringify([scope, server, query, identity, transports, share, persist, !options.token, !options.ticket]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: `name` has all that matters
  const store = useMemo(() => {
    let watching: Watch | undefined;
    let last = NOTHING;
    return {
      subscribe(listener: () => void) {
        if (scope === null) return () => {};
        // Opened here, not in render: React may throw a render away, and mounts twice in strict mode.
        const own = watch(scope, {
          ...options,
          token: options.token && (() => latest.current.token?.()),
          ticket: options.ticket && (() => latest.current.ticket?.()),
          onTiding: (tiding) => latest.current.onTiding?.(tiding),
        });
        watching = own;
        const end = own.subscribe(listener);
        return () => {
          end();
          last = own.getSnapshot();
          own.close();
          if (watching === own) watching = undefined;
        };
      },
      getSnapshot: () => watching?.getSnapshot() ?? last,
    };
  }, [name]);
  return useSyncExternalStore(store.subscribe, store.getSnapshot, () => NOTHING);
}

type Own<T> = DetailedHTMLProps<HTMLAttributes<T>, T> & { server?: string; ticket?: string; tickets?: string; token?: Secret };

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "tidings-progress": Own<TidingsProgress> & { job?: string; label?: string };
      "tidings-jobs": Own<TidingsJobs> & { "job-type"?: string; status?: string; limit?: number };
    }
  }
}
