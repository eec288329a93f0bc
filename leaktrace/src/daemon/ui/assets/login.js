// A token behind `#token=` in the address is sent as the form sends it. No server sees that part of an address, and it is
// taken out of it before anything is sent.
(() => {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  history.replaceState(null, "", location.pathname);
  const field = document.getElementById("token");
  field.value = given;
  field.form.requestSubmit();
})();
