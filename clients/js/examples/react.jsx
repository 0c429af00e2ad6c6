import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import "tidings-client/elements";
import { useTidings } from "tidings-client/react";

const token = () => fetch("/token").then((answer) => answer.text());

function Jobs() {
  const [type, setType] = useState("");
  const { status, ready, subjects } = useTidings("jobs", { token, query: { job_type: type ? [type] : [] } });
  return (
    <main>
      <label>
        Type <input value={type} onChange={({ target }) => setType(target.value)} />
      </label>
      <p id="status">{ready ? status : "loading"}</p>
      <ul>
        {[...subjects.values()].map((job) => (
          <li key={job.job_id}>
            {job.job_id}: {job.status}
            <tidings-progress job={job.job_id} token={token} />
          </li>
        ))}
      </ul>
    </main>
  );
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <Jobs />
  </StrictMode>,
);
