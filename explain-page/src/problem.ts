/** First of all: if anything stops the script, the page says so and stays as it is. */

addEventListener("error", () => {
  document.getElementById("problem")!.hidden = false;
});

export {};
