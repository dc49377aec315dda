/** The package's source beside the text: the line that is being spoken of carries a mark. */

import { useEffect } from "preact/hooks";

/** Mark a line of a listing that contains text, the first unless nth says otherwise; null: none. */
export function useMark(listing: string, text: string | null, nth = 0) {
  useEffect(() => {
    const listings = document.querySelectorAll(`[data-code="${listing}"]`);
    const unmark = () => listings.forEach((code) => code.querySelector(".here")?.classList.remove("here"));
    unmark();
    for (const code of text === null ? [] : listings) {
      const line = Array.from(code.children).filter((child) => child.textContent!.includes(text!))[nth];
      line?.classList.add("here");
      scrollInside(code, line as HTMLElement | undefined);
    }
    return unmark;
  }, [listing, text, nth]);
}

/** Bring the line into view by scrolling the listing alone, never the page. */
function scrollInside(code: Element, line: HTMLElement | undefined) {
  const box = code.closest<HTMLElement>(".source");
  if (!box || !line || box.scrollHeight <= box.clientHeight) return;
  const top = line.getBoundingClientRect().top - box.getBoundingClientRect().top;
  if (top < 0 || top > box.clientHeight - 40) box.scrollTop += top - box.clientHeight / 2;
}
