// Signs in with the token of a link, `/monitor/sign-in#token=…`. Browsers send nothing of what follows `#`: it is in no log
// and in no `Referer`. It leaves the address, and with it the history, before anything else happens.
"use strict";

function signIn() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  const form = document.querySelector("form:has(input[name=token])");
  form.elements.token.value = token;
  // A visitor who is signed in decides: somebody else's link must not change who they are.
  if (document.querySelector("form.account")) form.querySelector("button").focus();
  else form.requestSubmit();
}

signIn();
// The link may be opened where the page is open already: then only what follows `#` changes.
addEventListener("hashchange", signIn);
