// Signs in with the token of a link, `/monitor/sign-in#token=…`. Browsers do not send what follows `#`, so the token is in no log
// and in no `Referer`. The script first removes it from the URL, and so from the history.
"use strict";

function signIn() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  const form = document.querySelector("form:has(input[name=token])");
  form.elements.token.value = token;
  // A visitor who is already signed in must confirm: a link from another person must not change their account.
  if (document.querySelector("form.account")) form.querySelector("button").focus();
  else form.requestSubmit();
}

signIn();
// The link may be opened while the page is already open: then only the part after `#` changes.
addEventListener("hashchange", signIn);
