// Buttons inside server-made HTML: <button data-act data-name> becomes the event "act".
// After a new render the focus goes back to the button it was on, so the keyboard keeps its place.
let focused = null;
element.addEventListener('click', (e) => {
  const button = e.target.closest('[data-act]');
  if (!button) return;
  const {act, name} = button.dataset;
  if (act === 'delete' && !confirm(`Delete ${name} for good?`)) return;
  trigger('act', {act, name});
});
element.addEventListener('focusin', (e) => {
  const button = e.target.closest('[data-act]');
  focused = button ? [button.dataset.act, button.dataset.name] : null;
});
element.addEventListener('focusout', (e) => {
  if (e.relatedTarget) focused = null;
});
watch('value', () => {
  if (!focused || (document.activeElement && document.activeElement !== document.body)) return;
  for (const button of element.querySelectorAll('[data-act]')) {
    if (button.dataset.act === focused[0] && button.dataset.name === focused[1]) button.focus();
  }
});
