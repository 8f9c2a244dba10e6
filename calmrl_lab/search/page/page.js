"use strict";
const place = (id) => document.getElementById(id);

function line(parent, text) {
  // Text of items is never markup.
  const element = document.createElement("div");
  element.textContent = text;
  parent.append(element);
}

async function showPicture(parent, item) {
  const answer = await fetch("picture?item=" + encodeURIComponent(item));
  if (!answer.ok) return;
  const { picture } = await answer.json();
  if (!picture) return;
  const image = picture.startsWith("data:image/");
  const element = document.createElement(image ? "img" : "span");
  element.className = "face";
  if (image) {
    element.alt = "";
    element.src = picture;
  } else {
    element.textContent = picture;
  }
  parent.prepend(element);
}

async function search(event) {
  event.preventDefault();
  place("problem").textContent = "";
  place("results").replaceChildren();
  const [text, item] = [place("text").value.trim(), place("item").value.trim()];
  const query = { modality: place("modality").value, k: 24 };
  if (item) query.item = item; else query.text = text;
  if (place("label").value) query.labels = { [place("label").value]: place("value").value };
  const answer = await fetch("search", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(query),
  });
  const found = await answer.json();
  if (!answer.ok) {
    place("problem").textContent = found.error || "The request makes no sense: enter words or the id of an item.";
    return;
  }
  const rows = found.results[0] || [];
  if (!rows.length) place("problem").textContent = "Nothing found.";
  for (const row of rows) {
    const element = document.createElement("li");
    line(element, row.id);
    line(element, "score " + row.score.toFixed(3));
    for (const [name, value] of Object.entries(row)) if (name.startsWith("label.")) line(element, value);
    place("results").append(element);
    showPicture(element, row.id);
  }
}

async function start() {
  const about = await (await fetch("about")).json();
  place("about").textContent = `${about.items} items of ${about.run}, ${about.kind} index`;
  for (const [id, names] of [["modality", about.queries], ["label", about.labels]])
    for (const name of names) place(id).append(new Option(name, name));
  if (about.queries.includes("caption")) place("modality").value = "caption";
  place("form").addEventListener("submit", search);
}

start();
